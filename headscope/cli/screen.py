"""What the terminal shows: tables and JSON on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

WIDE = 132
"""Columns where stdout is no terminal, so that a table in a log is not cut at 80."""


def console() -> Any:
    """A rich console on stdout; plain text where stdout is no terminal."""
    from rich.console import Console

    return Console(
        highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else WIDE, emoji=False
    )


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], wraps: bool = True
) -> None:
    """A table without boxes; a column whose name starts with ``>`` is aligned to the right.

    If it ``wraps``, the last column may take several lines. The others are cut where the
    terminal is too narrow.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns, start=1):
        right = name.startswith(">")
        fold = wraps and number == len(columns)
        table.add_column(
            name.lstrip(">"),
            justify="right" if right else "left",
            overflow="fold" if fold else "ellipsis",
            no_wrap=not fold,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    screen = console()
    with screen.capture() as captured:
        screen.print(Text(title, style="bold"))  # rich would break it to the width of the table
        screen.print(table)
    print_lines(*(line.rstrip() for line in captured.get().rstrip().splitlines()))


def columns_of_terminal() -> int:
    """How wide stdout is."""
    return console().width


def wrapped(lines: Sequence[str]) -> list[str]:
    """Lines broken at words to the width of stdout, continued with their own indent."""
    import textwrap

    width = columns_of_terminal()
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        or [""]
    ]


def print_lines(*lines: str) -> None:
    """Lines to stdout as they are, without markup and without wrapping."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def print_json(value: Any) -> None:
    """Indented JSON; NaN becomes null, since JSON has none."""
    sys.stdout.write(json.dumps(_without_nan(value), indent=1, ensure_ascii=False) + "\n")


def note(sentence: str) -> None:
    """A line to stderr."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """A sign of life on stderr, if that is a terminal; gone when the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(title):
        yield


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """A function ``(done, total, skipped)`` that shows work of one stage on stderr.

    See `headscope.cli.progress_bars.stages`, which it is shown by.
    """
    from analysis.progress import Progress
    from headscope.cli.progress_bars import stages

    with stages("") as listener:
        begun: list[Any] = []

        def show(done: int, total: int, skipped: int) -> None:
            if not begun:
                begun.append(Progress(listener).stage(title, total, "", done=done))
            begun[0].reach(done, skipped)

        yield show


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
