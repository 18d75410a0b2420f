"""How far the work is, on stderr: a bar for each stage in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from analysis.precision import duration
from headscope.cli.screen import note

if TYPE_CHECKING:
    from analysis.progress import Listener, Stage

SECONDS_BETWEEN_LINES = 10.0
_BAR_WIDTH = 24


@contextmanager
def stages(title: str) -> Iterator[Listener]:
    """Gives what the stages of some work are told to (`analysis.progress.Progress`).

    If stderr is a terminal, a moving bar for each stage under the title, all gone when the block
    ends; else a line every ten seconds.
    """
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    bars = _bars(title)
    with bars:
        yield _Shown(bars)


class _Shown:
    """Shows each stage as a bar; one without a total goes when it has ended."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[Stage, Any] = {}

    def __call__(self, stage: Stage) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage.name, total=stage.total, stage=stage)
        task = self._tasks[stage]
        if stage.ended and stage.total is None:
            self._bars.remove_task(task)
            return
        self._bars.update(task, completed=stage.total if stage.ended else stage.done)


def _bars(title: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(count_of(task.fields["stage"]), justify="right")

    class Left(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(time_left_of(task.fields["stage"]))

    class Titled(Progress):
        def get_renderables(self) -> Iterator[Any]:
            if title:
                yield Text(title)
            yield from super().get_renderables()

    one_line = [Column(no_wrap=True) for _ in range(3)]  # in a narrow terminal the bar gives way
    columns = (
        TextColumn("{task.description}", table_column=one_line[0]),
        BarColumn(_BAR_WIDTH),
        Count(one_line[1]),
        Left(one_line[2]),
    )
    return Titled(*columns, console=Console(stderr=True), transient=True)


def _lines(title: str) -> Listener:
    last = time.monotonic()

    def show(stage: Stage) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        what = ", ".join(part for part in (title, stage.name) if part)
        known = [part for part in (count_of(stage), time_left_of(stage)) if part]
        note(f"{what}: {', '.join(known) or 'begun'}")

    return show


def count_of(stage: Stage) -> str:
    """``1,240 of 5,120 runs, 3 skipped``; ``12 epochs`` where no end is known; empty at first."""
    if stage.total is None:
        return f"{stage.done:,} {stage.unit}".rstrip() if stage.done else ""
    skipped = f", {stage.skipped:,} skipped" if stage.skipped else ""
    return f"{stage.done:,} of {stage.total:,} {stage.unit}".rstrip() + skipped


def time_left_of(stage: Stage) -> str:
    """``about 40 s left``; empty where it is not known, or nothing is left."""
    left = stage.seconds_left
    if left is None or stage.ended or stage.done == stage.total:
        return ""
    return f"about {duration(left)} left"
