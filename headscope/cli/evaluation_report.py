"""An evaluation on the screen or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.cli.screen import (
    columns_of_terminal,
    print_json,
    print_lines,
    print_table,
    wrapped,
)

if TYPE_CHECKING:
    from headscope.evaluating.result import Evaluation

_TABLE_GAP = 3
"""Of `print_table`."""


def print_evaluation(found: Evaluation, as_json: bool) -> None:
    """Print an evaluation: what is made up, at what price, and the differences with intervals."""
    from headscope.evaluating.summary import headline, legend, parts

    if as_json:
        print_json(
            {
                "path": str(found.path) if found.path else None,
                "plan": dict(found.plan),
                "metrics": found.frame.to_dict("records"),
                "reports": [dict(report) for report in found.reports],
                "notes": list(found.notes),
                "skipped": [dict(item) for item in found.skipped],
            }
        )
        return
    print_lines(headline(found))
    if found.path is not None:
        print_lines(f"run    {found.path}")
    for part in parts(found):
        for piece in part.split(columns_of_terminal(), _TABLE_GAP):
            print_lines("")
            print_table(piece.title, piece.columns, piece.rows, wraps=False)
    print_lines("", *wrapped(legend(found)))
