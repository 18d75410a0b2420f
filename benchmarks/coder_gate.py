"""What stands between two steps of a training in a child process: it waits to be told to go on."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO


class Over(Exception):
    """Nobody asks for further steps."""


class Gate:
    """Lets a training take as many steps as it is asked for, and says how long they took.

    The training calls `wait` before each step, wherever that is in a foreign loop. Numbers of steps
    come in as lines; for each, a JSON line with seconds goes out, from the first step's begin to
    the next call: forward, backward, optimiser, everything the loop does in between.
    """

    def __init__(self, given: TextIO, told: TextIO) -> None:
        self._given, self._told = given, told
        self._left = 0
        self._began: tuple[float, float] | None = None

    @classmethod
    def of_process(cls) -> Gate:
        """Speaks through this process's pipes; what libraries print goes to the error stream."""
        told = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(sys.stdin, told)

    def wait(self) -> None:
        """Return when the next step may be taken.

        Raises:
            Over: the other side has hung up.
        """
        if self._left == 0:
            self._wait_for_steps()
        self._left -= 1

    def _wait_for_steps(self) -> None:
        if self._began is None:
            self.say({"ready": True})
        else:
            wall, cpu = self._began
            spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            self.say(spent)
        line = self._given.readline()
        if not line.strip():
            raise Over
        self._left = int(line)
        self._began = time.perf_counter(), time.process_time()

    def say(self, what: dict[str, Any]) -> None:
        """One line to the other side."""
        self._told.write(json.dumps(what) + "\n")
        self._told.flush()
