"""Exemplars of a head as tables to read: events by decile, pairs of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from probes.heads import Head

_CONTEXT = 40
"""Characters around a token."""


def of_head(frame: pd.DataFrame, head: Head) -> pd.DataFrame:
    """The lines of one head of a table with ``tower layer head``."""
    mine = frame["tower"].eq(head.tower) & frame["layer"].eq(head.layer)
    return frame[mine & frame["head"].eq(head.head)]


def event_table(events: pd.DataFrame, kind: str, by: str) -> pd.DataFrame:
    """What a head reads most: a line per event, the largest first.

    Args:
        events: of one head.
        kind: ``strongest``, or ``decile`` for some of each tenth of all queries.
        by: ``weight`` or ``contribution``.
    """
    mine = events[(events["kind"] == kind) & (events["by"] == by)]
    order = ["decile", by] if kind == "decile" else [by]
    mine = mine.sort_values(order, ascending=False)
    columns: dict[str, Any] = {}
    if kind == "decile":
        columns["tenth"] = [f"{line.decile} of 10" for line in mine.itertuples()]
    columns |= {
        by: mine[by].to_numpy(),
        "query": [_place(line, "query") for line in mine.itertuples()],
        "reads": [_place(line, "key") for line in mine.itertuples()],
        "example": mine["example"].to_numpy(),
    }
    return pd.DataFrame(columns)


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Which tokens a head brings together: a line per pair, the largest share first."""
    mine = pairs.sort_values("share", ascending=False)
    return pd.DataFrame(
        {
            "query": mine["query"].to_numpy(),
            "key": [_key(line) for line in mine.itertuples()],
            "share": mine["share"].to_numpy(),
            "lift": mine["lift"].to_numpy(),
            "queries": mine["queries"].to_numpy(),
            "sink": mine["sink"].to_numpy(bool),
        }
    )


def _place(line: Any, side: str) -> str:
    row, column = getattr(line, f"{side}_row"), getattr(line, f"{side}_column")
    if getattr(line, f"{side}_role") == "image" and row >= 0:
        return f"patch row {row}, column {column}"
    before, after = getattr(line, f"{side}_before"), getattr(line, f"{side}_after")
    token = getattr(line, f"{side}_token") or f"<{getattr(line, f'{side}_role')}>"
    start = str(before)[-_CONTEXT:].strip()
    return f"{start} ⟦{token}⟧ {str(after)[:_CONTEXT].strip()}".strip()


def _key(line: Any) -> str:
    if pd.isna(line.row_offset):
        return str(line.key)
    down = _steps(line.row_offset, "down", "up")
    return f"{line.key} {down} {_steps(line.column_offset, 'right', 'left')}"


def _steps(offset: int, after: str, before: str) -> str:
    return f"{abs(int(offset))} {after if offset >= 0 else before}"
