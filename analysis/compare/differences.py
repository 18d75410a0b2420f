"""Differences of aligned lines with intervals, from two tables or from pairs of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.compare import intervals, pairing
from analysis.run_folder import Run
from analysis.table_form import RANGES

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING = 1e-5
"""Differences below this share of a measure's largest value are rounding, not change."""


def from_tables(both: pd.DataFrame) -> pd.DataFrame:
    """Differences and their intervals as those of separate samples; `free` is for p."""
    found = both[["tower", "layer", "head", "measure", "variant"]].copy()
    values, ends, counts = [], [], []
    floor, ceiling = _limits(both["unit_left"])
    for side in ("left", "right"):
        value, low, high, n = (
            both[f"{name}_{side}"].to_numpy(float) for name in ("value", "ci_low", "ci_high", "n")
        )
        wide = intervals.expanded(value, low, high, n)
        values.append(value)
        ends.append((np.maximum(wide[0], floor), np.minimum(wide[1], ceiling)))
        counts.append(n)
        found[side], found[f"n_{side}"] = value, n.astype(int)
    found["difference"] = values[1] - values[0]
    found["ci_low"], found["ci_high"] = intervals.of_difference(
        values[0], ends[0], values[1], ends[1]
    )
    found["free"] = intervals.freedom(values[0], ends[0], values[1], ends[1], *counts)
    found["paired"] = False
    return found


def put_pairs(found: pd.DataFrame, both: pd.DataFrame, left: Run, right: Run) -> None:
    """Put the intervals of paired examples in place of the others, where there are such."""
    measures = set(both["measure"])
    drawn = [
        pairing.replicates(left, measures, set(both["tower"])),
        pairing.replicates(right, measures, set(both["tower_right"])),
    ]
    if not all(one.place for one in drawn):
        return
    names = [("tower", "variant"), ("tower_right", "variant_right")]
    columns = []
    for one, (tower, variant) in zip(drawn, names, strict=True):
        keys = zip(
            *(both[name].tolist() for name in (tower, "layer", "head", "measure", variant)),
            strict=True,
        )
        columns.append(np.array([one.place.get(key, -1) for key in keys], dtype=np.int64))
    rows = np.flatnonzero((columns[0] >= 0) & (columns[1] >= 0))
    if not rows.size:
        return
    at = [column[rows] for column in columns]
    low, high = pairing.interval(drawn[1].values[:, at[1]] - drawn[0].values[:, at[0]])
    n = np.minimum(drawn[0].n[at[0]], drawn[1].n[at[1]]).astype(float)
    difference = found["difference"].to_numpy(float)[rows]
    low, high = intervals.expanded(difference, low, high, n)
    floor, ceiling = _limits(both["unit_left"].iloc[rows])
    labels = found.index[rows]
    found.loc[labels, "ci_low"] = np.maximum(low, floor - ceiling)
    found.loc[labels, "ci_high"] = np.minimum(high, ceiling - floor)
    found.loc[labels, "free"] = n - 1
    found.loc[labels, "paired"] = True


def _limits(units: pd.Series) -> tuple[Any, Any]:
    low = units.map({unit: ends[0] for unit, ends in RANGES.items()}).to_numpy(float)
    high = units.map({unit: ends[1] for unit, ends in RANGES.items()}).to_numpy(float)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def told(lines: pd.DataFrame) -> NDArray[np.float64]:
    """Float ``[head, (p, q)]`` of the heads of one measure."""
    difference = lines["difference"].to_numpy(float)
    sizes = np.abs(lines[["left", "right"]].to_numpy(float))
    largest = float(np.nanmax(sizes, initial=0.0)) if np.isfinite(sizes).any() else 0.0
    same = np.abs(difference) <= _ROUNDING * largest
    p = intervals.p_values(
        difference, *(lines[name].to_numpy(float) for name in ("ci_low", "ci_high", "free"))
    )
    p = np.where(same & np.isfinite(p), 1.0, p)
    return np.stack([p, intervals.false_discoveries(p)], axis=1)
