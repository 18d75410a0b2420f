"""A head table on one screen: per tower and measure, the null, the middle, the highest heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.precision import plain, rounded

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable

TOP = 3
"""Highest heads that a line keeps."""
_GAP = 3
_EVERY_VARIANT = {"role_mass", "vhd"}
"""Measures whose variants ask different questions, so that a short table shows them all."""
_SHARE, _FORCED = "share", 0.999
"""Shares whose null is at least this say nothing: there is no other place to look."""
_ROUNDING = 1e-6
"""Nulls below are what float32 leaves of 0, such as the difference of two mean cosines."""


@dataclass(frozen=True)
class SummaryLine:
    """One measure (and variant) in one tower.

    Attributes:
        null: middle of the nulls of all heads; NaN where the measure has none.
        median: over heads.
        spread: highest minus lowest value.
        top: the highest heads, as lines of the head table.
        more: variants of the measure that a short summary leaves out.
    """

    tower: str
    measure: str
    variant: str
    unit: str
    n: int
    null: float
    median: float
    spread: float
    top: pd.DataFrame
    more: int = 0

    @property
    def name(self) -> str:
        more = f"(+{self.more})" if self.more else ""
        return " ".join(part for part in (self.measure, self.variant, more) if part)

    def cells(self, heads: int = TOP) -> list[str]:
        """Text for `columns(heads)`: the measure, its unit, null, median and highest heads."""
        return [
            self.name,
            self.unit,
            plain(0.0 if abs(self.null) < _ROUNDING else self.null)
            if self.null == self.null
            else "–",
            plain(self.median),
            *self._highest(heads),
        ]

    def _highest(self, heads: int) -> list[str]:
        if self.spread == 0:
            return ["all heads alike", *[""] * (heads - 1)]
        texts = [_head_text(line) for line in self.top.to_dict("records")[:heads]]
        return texts + [""] * (heads - len(texts))

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
                float(known["value"].max() - known["value"].min()),
                known.nlargest(TOP, "value"),
            )
        )
    return found


def shortened(lines: Sequence[SummaryLine]) -> list[SummaryLine]:
    """One line per measure where that is enough: its first variant, and how many more it has."""
    counts = Counter(line.measure for line in lines)
    kept: dict[Any, SummaryLine] = {}
    for line in lines:
        if line.measure in _EVERY_VARIANT:
            if line.unit != _SHARE or not line.null >= _FORCED:
                kept[line.measure, line.variant] = line
        elif line.measure not in kept:
            kept[line.measure] = replace(line, more=counts[line.measure] - 1)
    return list(kept.values())


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
