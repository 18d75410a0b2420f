"""How a training of coders goes, on stderr: a live table in a terminal, else lines now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from analysis.precision import duration
from headscope.cli.progress_bars import SECONDS_BETWEEN_LINES
from headscope.cli.screen import note

if TYPE_CHECKING:
    from sae.training.metrics import Notice, Record

COLUMNS = ("site", "step", "tokens", "explained", "L0", "dead", "loss", "tokens/s", "left")


@contextmanager
def training_shown(title: str) -> Iterator[Callable[[Record | Notice], None]]:
    """Gives what a training is told to listen with.

    If stderr is a terminal, a table with a row per coder that is drawn anew while it trains, and
    stays when the block ends; else a line per coder every ten seconds. Of several processes only
    the first one shows anything.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda told: None
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.live import Live

    shown = _Table(title)
    with Live(shown.drawn(), console=Console(stderr=True), refresh_per_second=4) as live:

        def hear(told: Record | Notice) -> None:
            shown.hear(told)
            live.update(shown.drawn())

        yield hear


def cells(record: Record, since: Record | None = None) -> tuple[str, ...]:
    """One coder at one step, as `COLUMNS` say.

    Args:
        since: an earlier record of this run, of which speed and time left are told.
    """
    explained = record.explained_variance
    speed, left = "", ""
    if since is not None and record.seconds > since.seconds:
        rate = (record.tokens - since.tokens) / (record.seconds - since.seconds)
        speed = f"{rate:,.0f}"
        if rate:
            rest = record.tokens / record.step * record.steps - record.tokens
            left = duration(rest / rate) if rest else ""
    return (
        record.site,
        f"{record.step:,} of {record.steps:,}",
        f"{record.tokens:,}",
        "–" if explained is None else f"{explained:.3f}",
        f"{record.l0:.1f}",
        f"{record.dead:,}",
        f"{record.loss:.4g}",
        speed,
        left,
    )


class _Table:
    def __init__(self, title: str) -> None:
        self._title = title
        self._first: dict[str, Record] = {}
        self._last: dict[str, Record] = {}
        self._notices: list[str] = []

    def hear(self, told: Record | Notice) -> None:
        from sae.training.metrics import Notice

        if isinstance(told, Notice):
            self._notices.append(told.text)
            return
        self._first.setdefault(told.site, told)
        self._last[told.site] = told

    def drawn(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        for number, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
        for site, record in self._last.items():
            table.add_row(*map(Text, cells(record, self._first[site])))
        return Group(Text(self._title), *map(Text, self._notices), table)


def _lines(title: str) -> Callable[[Record | Notice], None]:
    first: dict[str, Record] = {}
    said: dict[str, float] = {}
    began = time.monotonic()

    def hear(told: Record | Notice) -> None:
        from sae.training.metrics import Notice

        if isinstance(told, Notice):
            note(f"{title}: {told.text}")
            return
        first.setdefault(told.site, told)
        now = time.monotonic()
        last = told.step >= told.steps
        if not last and now - said.get(told.site, began) < SECONDS_BETWEEN_LINES:
            return
        said[told.site] = now
        site, step, tokens, explained, active, dead, _, speed, left = cells(told, first[told.site])
        parts = [
            f"step {step}",
            f"{tokens} tokens",
            f"explained variance {explained}",
            f"L0 {active}",
            f"{dead} dead",
        ]
        parts += [f"{speed} tokens/s"] if speed else []
        parts += [f"about {left} left"] if left else []
        note(f"{title}, {site}: {', '.join(parts)}")

    return hear
