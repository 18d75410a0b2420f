"""Clocks and peaks: two runs turn by turn, the most memory that a run took, quartiles."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Run = Callable[[], object]
_MIB = 1 << 20


class Stopwatch:
    """Times runs on a device, in seconds of the wall and of the process's own CPU time."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def time(self, run: Run) -> tuple[float, float]:
        gc.collect()
        self._wait()
        wall, processor = time.perf_counter(), time.process_time()
        result = run()
        self._wait()
        seconds = time.perf_counter() - wall, time.process_time() - processor
        del result  # Freed after the clock was read: what is kept is freed by whoever kept it.
        return seconds

    def side_by_side(self, plain: Run, other: Run, repeats: int) -> list[dict[str, float]]:
        """After one run of each to warm up, ``repeats`` turns of both in alternating order."""
        plain(), other()
        turns = []
        for turn in range(repeats):
            order = (plain, other) if turn % 2 == 0 else (other, plain)
            taken = {run: self.time(run) for run in order}
            turns.append(
                {
                    "plain": taken[plain][0],
                    "seconds": taken[other][0],
                    "plain_cpu": taken[plain][1],
                    "seconds_cpu": taken[other][1],
                }
            )
        return turns

    def in_turn(
        self, runs: Mapping[str, Run], repeats: int, *, warm: bool = True
    ) -> list[dict[str, float]]:
        """Wall seconds of each run by name; another one begins in each of the ``repeats`` turns.

        Args:
            warm: run each once before, not measured.
        """
        for run in runs.values() if warm else ():
            run()
        return [
            {name: self.time(runs[name])[0] for name in rotated(list(runs), turn)}
            for turn in range(repeats)
        ]

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


def peak_memory(run: Run, device: str = "cpu", repeats: int = 3) -> list[dict[str, float]]:
    """MiB: ``peak`` of the process while it runs (on a GPU: of the device), ``rest`` before."""
    peaks = []
    for _ in range(repeats):
        gc.collect()
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats()
            rest = torch.cuda.memory_allocated() / _MIB
            run()
            peaks.append({"peak": torch.cuda.max_memory_allocated() / _MIB, "rest": rest})
            continue
        rest = forget_peak()
        run()
        peaks.append({"peak": resident_peak(), "rest": rest})
    return peaks


def forget_peak() -> float:
    """Set the process's peak back to what it holds now, where the system can; MiB held now.

    Elsewhere (no Linux) the peak stays that of the whole life of the process.
    """
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return resident_peak()
    reset.write_text("5")
    return _status("VmRSS")


def resident_peak() -> float:
    """MiB: the most that the process has held since `forget_peak`."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status must have a line {field}, it has none.")


@contextmanager
def frozen() -> Iterator[None]:
    """Spare the garbage collector what is there already: each measured run collects first."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names in the order of a turn.

    >>> [rotated(["a", "b"], turn) for turn in range(3)]
    [['a', 'b'], ['b', 'a'], ['a', 'b']]
    """
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value, three times itself.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    found = sorted(values)
    if len(found) == 1:
        return found[0], found[0], found[0]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return low, middle, high


def ratios(turns: Sequence[dict[str, Any]], clock: str = "") -> list[float]:
    """How many times the plain run each turn took; ``clock`` is ``""`` (wall) or ``"_cpu"``."""
    return [turn[f"seconds{clock}"] / turn[f"plain{clock}"] for turn in turns]
