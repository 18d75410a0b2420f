"""What the study of sinks found, on the screen: dimensions, tokens, heads, artefacts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.sinks.said import TOKEN_COLUMNS, sink_lines, sink_sentences
from headscope.cli.screen import print_lines, print_table, wrapped

if TYPE_CHECKING:
    import pandas as pd

    from analysis.run_folder import Run

SECTION, TABLE = "vision", "massive"
_TOKENS = 8
_NAMES = ("sink_dimensions", "sink_tokens", "massive", "massive_entries", "patch_norms")
_WORDS = 2
"""Columns of words; those after them are numbers."""


def print_sinks(run: Run) -> None:
    """Print what the study `sinks` of a run found, if it was asked for."""
    section = run.sections.get(SECTION)
    if section is None or not section.finished or TABLE not in section.tables:
        return
    tables = {name: section.table(name) for name in _NAMES if name in section.tables}
    if "sink_tokens" in tables:
        _print_tokens(tables["sink_tokens"])
    lines = sink_sentences(tables, run.heads.frame)
    print_lines("", *wrapped([*lines, f"More in {section.path}: {', '.join(tables)}."]))


def _print_tokens(tokens: pd.DataFrame) -> None:
    rows = sink_lines(tokens)
    if not rows:
        return
    print_lines("")
    columns = [*TOKEN_COLUMNS[:_WORDS], *(f">{name}" for name in TOKEN_COLUMNS[_WORDS:])]
    title = "Tokens that draw attention for nothing"
    print_table(title, columns, rows[:_TOKENS], wraps=False)
    if len(rows) > _TOKENS:
        print_lines(f"and {len(rows) - _TOKENS} more, in table sink_tokens")
    print_lines(
        *wrapped(
            [
                "Layers: where the stream enters them (one more than the last: where it leaves). "
                "phi: the largest |x| in a sink dimension over the token's RMS; of artefacts the "
                "norm over the median of the image's patches. Weight received: mean over the "
                "heads, in the layer where it is largest; null: under uniform attention."
            ]
        )
    )
