"""Ctrl-C that waits for the end of a step, so that a checkpoint can be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C was pressed since `interrupts_held`; the second time it is not held back."""

    def __init__(self) -> None:
        self.came = False

    def check(self) -> None:
        """Raise what was held back; where all is whole.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self.came:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            signal.default_int_handler(number, frame)
        self.came = True


@contextmanager
def interrupts_held() -> Iterator[Interrupts]:
    """Signals that would raise KeyboardInterrupt are held back within the block.

    Handlers of others stay, and are put back in the end. Outside of the main thread, where Python
    hears no signals, nothing is done.

    Raises:
        KeyboardInterrupt: one came, and the block ended without asking for it.
    """
    interrupts = Interrupts()
    kept = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.default_int_handler:
                kept[number] = signal.signal(number, interrupts._hear)
    try:
        yield interrupts
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    interrupts.check()
