"""How far a scoring is: named stages, each with what it counts, how much there is and what is done.

Whoever runs a scoring gives a listener and shows what it hears; whoever works opens stages. A total
is known when its stage begins, or there is none: it is never a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.inputs import Batch

EXAMPLES = "examples"
RUNS = "runs"
"""Unit of stages that take sets of heads away: one example, once through, without one set."""


@dataclass(eq=False)
class Stage:
    """A part of the work, and how much of it is done.

    Attributes:
        name: what is being done, as people read it; a study's name stands before it.
        total: how many units there are, None where nobody can know.
        unit: what is counted.
        done: how many are done, those that were skipped among them.
        before: how many were done when the stage began (a run that is taken up again).
        skipped: how many could not be used.
        ended: whether it is over; what is not done then was not there to be done.
    """

    name: str
    total: int | None
    unit: str = EXAMPLES
    done: int = 0
    before: int = 0
    skipped: int = 0
    ended: bool = False
    listener: Listener | None = field(default=None, repr=False)
    _began: float = field(init=False, repr=False)
    _stepped: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._began = self._stepped = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So many units more are done."""
        self.reach(self.done + count, self.skipped)

    def reach(self, done: int, skipped: int) -> None:
        """So many units are done by now, so many of them skipped."""
        self.done, self.skipped, self._stepped = done, skipped, time.monotonic()
        self._tell()

    def end(self) -> None:
        """Nothing is left to be done."""
        self.ended = True
        self._tell()

    @property
    def seconds(self) -> float:
        """From the beginning to the last step."""
        return self._stepped - self._began

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first step, and where the total is not known."""
        new = self.done - self.before
        if self.ended:
            return 0.0
        if self.total is None or new < 1:
            return None
        left = self.seconds / new * (self.total - self.done)
        return max(left - (time.monotonic() - self._stepped), 0.0)

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener(self)


Listener = Callable[[Stage], None]
"""Called when a stage begins, after every step and when it has ended."""


@dataclass(frozen=True)
class Progress:
    """Opens stages. Without a listener they go unheard.

    Attributes:
        examples: how many examples the data hold, None where nobody has counted.
        of: whose stages these are, such as a study's name; empty for the scoring's own.
    """

    listener: Listener | None = None
    examples: int | None = None
    of: str = ""

    def stage(self, name: str, total: int | None, unit: str = EXAMPLES, done: int = 0) -> Stage:
        """A new stage, told to the listener at once.

        Args:
            done: units that an earlier run has done.
        """
        named = f"{self.of}: {name}" if self.of else name
        stage = Stage(named, total, unit, done, before=done, listener=self.listener)
        stage.reach(done, 0)
        return stage

    def over(self, name: str, data: Callable[[], Iterable[Batch]]) -> Callable[[], Iterator[Batch]]:
        """The same data; each pass over them is a stage that counts examples."""

        def passed() -> Iterator[Batch]:
            stage = self.stage(name, self.examples)
            for batch in data():
                yield batch
                stage.step(batch.size)
            stage.end()

        return passed
