"""What the finder found, as a table to read: values with intervals, nulls of the ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.finder import Found
from analysis.head_table import HeadTable
from analysis.precision import plain, rounded

if TYPE_CHECKING:
    import pandas as pd


def found_table(found: Found, several_towers: bool = False) -> pd.DataFrame:
    """A line per head in the order of the ranking, as texts.

    Columns: ``head`` (with its tower where there are several), the ranking's value with half its
    interval, its ``null``, then the other quantities that the query names.
    """
    import pandas as pd

    names = found.names
    if not several_towers:
        names = [name.rpartition(".")[2] for name in names]
    columns: dict[str, list[str]] = {"head": names}
    labels = [one.label for one in found.quantities]
    for label in sorted(labels, key=lambda one: one != found.ranked_by):
        lines, quantity = found.lines(label), found.quantities[labels.index(label)]
        if quantity.column == "value":
            ends = zip(lines["value"], lines["ci_low"], lines["ci_high"], strict=True)
            columns[label] = [rounded(*numbers) for numbers in ends]
        else:
            columns[label] = [plain(number) for number in lines[quantity.column]]
        if label == found.ranked_by and quantity.column == "value":
            null = zip(lines["null_low"], lines["null_high"], strict=True)
            columns["null"] = [_between(*numbers) for numbers in null]
    return pd.DataFrame(columns)


def values_table(heads: HeadTable, tower: str, layer: int, head: int) -> pd.DataFrame:
    """Everything that was measured of one head, as texts: a line per measure and variant."""
    import pandas as pd

    frame = heads.frame
    lines = frame[
        (frame["tower"] == tower) & (frame["layer"] == layer) & (frame["head"] == head)
    ].dropna(subset="value")
    numbers = (lines[name] for name in ("value", "ci_low", "ci_high"))
    return pd.DataFrame(
        {
            "measure": lines["measure"].to_list(),
            "variant": lines["variant"].to_list(),
            "value": [rounded(*three) for three in zip(*numbers, strict=True)],
            "null": [
                _between(low, high)
                for low, high in zip(lines["null_low"], lines["null_high"], strict=True)
            ],
            "unit": lines["unit"].to_list(),
            "n": [str(int(n)) for n in lines["n"]],
        }
    )


def _between(low: float, high: float) -> str:
    if low != low:
        return ""
    ends = plain(low), plain(high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
