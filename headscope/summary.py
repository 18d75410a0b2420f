"""A head table on one screen: per tower and measure, the null, the middle, the highest heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.precision import plain, rounded

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable

TOP = 3
"""Highest heads that a line keeps."""
_GAP = 3


@dataclass(frozen=True)
class SummaryLine:
    """One measure (and variant) in one tower.

    Attributes:
        null: middle of the nulls of all heads; NaN where the measure has none.
        median: over heads.
        top: the highest heads, as lines of the head table.
    """

    tower: str
    measure: str
    variant: str
    unit: str
    n: int
    null: float
    median: float
    top: pd.DataFrame

    @property
    def name(self) -> str:
        return f"{self.measure} {self.variant}".strip()

    def cells(self, heads: int = TOP) -> list[str]:
        """Text for `columns(heads)`: the measure, its unit, null, median and highest heads."""
        return [
            self.name,
            self.unit,
            plain(self.null) if self.null == self.null else "–",
            plain(self.median),
            *(_head_text(line) for line in self.top.to_dict("records")[:heads]),
            *[""] * (heads - len(self.top)),
        ]

    def record(self) -> dict[str, Any]:
        """The line as JSON-able values."""
        keep = ["head", "value", "ci_low", "ci_high", "null_low", "null_high", "n"]
        return {
            "tower": self.tower,
            "measure": self.measure,
            "variant": self.variant,
            "unit": self.unit,
            "null": self.null,
            "median": self.median,
            "top": [
                {"name": f"{self.tower}.L{line['layer']}H{line['head']}", "layer": line["layer"]}
                | {name: line[name] for name in keep}
                for line in self.top.to_dict("records")
            ],
        }


def columns(heads: int = TOP) -> list[str]:
    """Names of the columns, as `print_table` takes them."""
    return ["measure", "unit", ">null", ">median", "highest heads", *[""] * (heads - 1)]


def heads_that_fit(lines: Sequence[SummaryLine], width: int) -> int:
    """How many of the highest heads there is room for in a terminal."""
    for heads in range(TOP, 1, -1):
        rows = [columns(heads), *(line.cells(heads) for line in lines)]
        needed = sum(max(map(len, cells)) + _GAP for cells in zip(*rows, strict=True))
        if needed <= width:
            return heads
    return 1


def summarise(heads: HeadTable) -> dict[str, list[SummaryLine]]:
    """Lines for each tower, in the table's order; what was measured nowhere is left out."""
    found: dict[str, list[SummaryLine]] = {}
    keys = ["tower", "measure", "variant", "inputs"]
    for names, lines in heads.frame.groupby(keys, sort=False):
        tower, measure, variant, _ = names if isinstance(names, tuple) else (names, "", "", "")
        known = lines.dropna(subset="value")
        if known.empty:
            continue
        found.setdefault(str(tower), []).append(
            SummaryLine(
                str(tower),
                str(measure),
                str(variant),
                str(known["unit"].iloc[0]),
                int(known["n"].max()),
                float(((known["null_low"] + known["null_high"]) / 2).median()),
                float(known["value"].median()),
                known.nlargest(TOP, "value"),
            )
        )
    return found


def tower_title(heads: HeadTable, tower: str) -> str:
    """``language: 2 layers, 16 heads, n = 64``."""
    frame = heads.frame[heads.frame["tower"] == tower]
    count = len(frame[["layer", "head"]].drop_duplicates())
    layers = heads.layers[tower]
    return (
        f"{tower}: {layers} {'layer' if layers == 1 else 'layers'}, {count} heads, "
        f"n = {int(frame['n'].max())}"
    )


def _head_text(line: dict[str, Any]) -> str:
    value = rounded(line["value"], line["ci_low"], line["ci_high"])
    return f"L{line['layer']}H{line['head']} {value}"
