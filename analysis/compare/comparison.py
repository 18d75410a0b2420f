"""What changed from one table of heads to another, and how sure that is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.compare import intervals, pairing
from analysis.compare.aligned import Choice, aligned
from analysis.compare.differences import from_tables, put_pairs, told
from analysis.head_table import HeadTable
from analysis.run_folder import Run, open_run
from analysis.statistics import spearman

if TYPE_CHECKING:
    import pandas as pd

MOVED = 0.05
"""Heads up to this share of false discoveries are said to have moved."""
_FAMILY = ["tower", "measure", "variant"]
HEAD_COLUMNS = (
    "tower", "layer", "head", "measure", "variant", "left", "right", "difference", "ci_low",
    "ci_high", "p", "q", "n_left", "n_right", "paired", "unit",
)  # fmt: skip
RANK_COLUMNS = (
    "tower", "measure", "variant", "heads", "rank_correlation", "ci_low", "ci_high",
    "mean_difference", "largest_difference", "moved", "told", "paired", "unit",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Differences per head and agreement per measure.

    Attributes:
        heads: a line per head, measure and variant: ``left right difference`` (right minus left),
            its 95 % interval ``ci_low ci_high``, ``p`` of no difference, ``q`` (the share of false
            discoveries among heads of the same measure with a q as low), ``n_left n_right``
            examples, ``paired`` and ``unit``. Interval, p and q are NaN where a side has none.
        ranks: a line per measure, tower and variant: ``rank_correlation`` (Spearman over
            ``heads``) with its 95 % interval, ``mean_difference``, ``largest_difference`` (of
            either sign), how many heads ``moved`` (q at most 0.05) of how many of which that can
            be ``told``.
        left_out: what was not compared: measure, tower, variant, reason.
        unpaired: why intervals are those of two separate samples; empty where examples are paired.
    """

    heads: pd.DataFrame
    ranks: pd.DataFrame
    left_out: list[dict[str, str]]
    unpaired: str

    def moved(self, measure: str | None = None, tower: str | None = None) -> pd.DataFrame:
        """Heads that moved, the surest first: by p, then by the difference in its half widths."""
        return self.most_moved(measure, tower, MOVED)

    def most_moved(
        self, measure: str | None = None, tower: str | None = None, up_to_q: float = 1.0
    ) -> pd.DataFrame:
        """Heads with an interval, the surest difference first; those without come never."""
        frame = self.heads
        for column, name in (("measure", measure), ("tower", tower)):
            if name is not None:
                frame = frame[frame[column] == name]
        frame = frame[frame["q"] <= up_to_q]
        half = ((frame["ci_high"] - frame["ci_low"]) / 2).to_numpy(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.nan_to_num(np.abs(frame["difference"].to_numpy(float)) / half)
        order = np.lexsort((-steps, frame["p"].to_numpy(float)))
        return frame.iloc[order].reset_index(drop=True)

    def __repr__(self) -> str:
        moved, told = int(self.ranks["moved"].sum()), int(self.ranks["told"].sum())
        how = "not paired: " + self.unpaired if self.unpaired else "paired by example"
        return (
            f"Comparison: {len(self.ranks)} measures and variants, {moved} of {told} differences "
            f"moved; {how}"
        )


def compare(
    left: Run | HeadTable | str | Path,
    right: Run | HeadTable | str | Path,
    measures: str | Collection[str] | None = None,
    towers: Choice = None,
    variants: Choice = None,
    inputs: Choice = None,
    paired: bool | None = None,
) -> Comparison:
    """Compare two runs or head tables, or two towers or variants of one: right minus left.

    Where both are runs that scored the same examples and kept each one's scores, the bootstrap
    resamples an example in both at once (`pairing`), and what an example does to both cancels.
    Otherwise the intervals of both tables are put together as those of separate samples (MOVER).
    Both are widened for few examples (`intervals.expanded`), so that about 5 % of heads that did
    not change have an interval without 0; of the heads that `Comparison.moved` names, 5 % at most
    are expected to be there by chance, in each measure. Measures without intervals (read off
    weights, or of one example) are compared without.

    Args:
        left, right: runs, their folders, or head tables.
        measures: which; all that both have by default.
        towers, variants: a name, or a pair of names, left and right, for two towers or variants
            against each other.
        inputs: a name or a pair, for measures that were taken on several.
        paired: whether examples must be paired, or must not; where they can be by default.

    Raises:
        ValueError: nothing in common, an unknown name, or ``paired`` where that cannot be.
        RunError: a folder is no run.
    """
    import pandas as pd

    runs = [open_run(side) if isinstance(side, (str, Path)) else side for side in (left, right)]
    tables = [side.heads if isinstance(side, Run) else side for side in runs]
    wanted = [measures] if isinstance(measures, str) else measures
    both, left_out = aligned(tables[0], tables[1], wanted, towers, variants, inputs)
    unpaired = _why_unpaired(runs[0], runs[1], paired)
    found = from_tables(both)
    if not unpaired:
        assert isinstance(runs[0], Run) and isinstance(runs[1], Run)
        put_pairs(found, both, runs[0], runs[1])
        if not found["paired"].any():
            unpaired = "these measures have no scores of single examples"
            if paired:
                raise ValueError(f"Examples cannot be paired: {unpaired}. Leave `paired` out.")
    found["unit"] = both["unit_left"]
    p_and_q = np.full((len(found), 2), np.nan)
    for rows in found.groupby(_FAMILY, sort=False).indices.values():
        p_and_q[rows] = told(found.iloc[rows])
    found["p"], found["q"] = p_and_q.T
    heads = found[list(HEAD_COLUMNS)]
    ranks = [_ranked(names, lines) for names, lines in heads.groupby(_FAMILY, sort=False)]
    return Comparison(heads, pd.DataFrame(ranks)[list(RANK_COLUMNS)], left_out, unpaired)


def _why_unpaired(left: Run | HeadTable, right: Run | HeadTable, paired: bool | None) -> str:
    if paired is False:
        return "not asked for"
    if isinstance(left, Run) and isinstance(right, Run):
        why = pairing.why_no_pairs(left, right)
    else:
        why = "a table has no scores of single examples"
    if paired and why:
        raise ValueError(f"Examples cannot be paired: {why}. Leave `paired` out.")
    return why


def _ranked(names: Any, lines: pd.DataFrame) -> dict[str, Any]:
    left, right = lines["left"].to_numpy(float), lines["right"].to_numpy(float)
    known = np.isfinite(left) & np.isfinite(right)
    correlation = spearman(left, right)
    low, high = intervals.of_rank_correlation(correlation, int(known.sum()))
    differences = (right - left)[known]
    largest = differences[np.abs(differences).argmax()] if known.any() else np.nan
    return {
        **dict(zip(_FAMILY, names, strict=True)),
        "heads": int(known.sum()),
        "rank_correlation": correlation,
        "ci_low": low,
        "ci_high": high,
        "mean_difference": float(differences.mean()) if known.any() else np.nan,
        "largest_difference": float(largest),
        "moved": int((lines["q"] <= MOVED).sum()),
        "told": int(lines["q"].notna().sum()),
        "paired": bool(lines["paired"].all()),
        "unit": str(lines["unit"].iloc[0]),
    }
