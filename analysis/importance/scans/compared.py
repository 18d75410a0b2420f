"""Every head on two sets of examples: effect size, interval, null, p, false discovery rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from analysis.importance.behaviours.activity import HeadValues
from analysis.importance.scans.difference import (
    effect_size,
    effect_size_interval,
    false_discovery,
)
from analysis.importance.scans.options import ScanError, ScanOptions
from analysis.importance.scans.permutation import Permuted, permutation_test
from analysis.importance.scans.two_sets import SETS, Halved
from analysis.statistics import spearman

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


def compared(
    one: HeadValues, other: HeadValues, sets: Halved, how: ScanOptions, seed: int = 0
) -> tuple[pd.DataFrame, Permuted]:
    """The lines of `Scan.heads`, and the test that p rests on.

    Both sets must have values of the same heads (`on_same_heads`).

    Raises:
        ScanError: no head has a value on every example.
        ValueError: a set has fewer than 2 examples.
    """
    import pandas as pd

    mine, theirs = one.values[sets.rows[0]], other.values[sets.rows[1]]
    permuted = permutation_test(mine, theirs, how.permutations, seed, paired=how.paired)
    if not np.isfinite(permuted.p).any():
        _refuse_unknown((one, other), how)
    low, high = effect_size_interval(mine, theirs, sets.weights(how.replicates))
    first, second = sets.first
    frame = pd.DataFrame(
        {
            "tower": [head.tower for head in one.heads],
            "layer": [head.layer for head in one.heads],
            "head": [head.head for head in one.heads],
            "of": one.of,
            "mean_behaviour": one.values.mean(0),
            "mean_control": other.values.mean(0),
            "effect_size": effect_size(mine, theirs),
            "ci_low": low,
            "ci_high": high,
            "null_low": permuted.null_low,
            "null_high": permuted.null_high,
            "p": permuted.p,
            "q": false_discovery(permuted.p),
            "first_half": _of_half(mine[first], theirs[second]),
            "second_half": _of_half(mine[~first], theirs[~second]),
        }
    )
    order = frame["effect_size"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True), permuted


def agreement_of_halves(heads: pd.DataFrame) -> dict[str, float]:
    """Tower -> Spearman's correlation of the effect sizes in the two halves of the examples.

    Towers where it has no meaning are left out.
    """
    found = {
        str(tower): spearman(lines["first_half"].to_numpy(), lines["second_half"].to_numpy())
        for tower, lines in heads.groupby("tower", sort=False)
    }
    return {tower: value for tower, value in found.items() if np.isfinite(value)}


def _of_half(one: Array, other: Array) -> Array:
    """Effect sizes, NaN where a half is too small to have any."""
    if min(len(one), len(other)) < 2:
        return np.full(one.shape[1], np.nan)
    return effect_size(one, other)


def _refuse_unknown(values: tuple[HeadValues, HeadValues], how: ScanOptions) -> NoReturn:
    for name, given in zip(SETS, values, strict=True):
        rows = [bool(np.isfinite(row).any()) for row in given.values]
        if not all(rows):
            example = given.examples[rows.index(False)].split(":", 1)[1]
            raise ScanError(
                f"Measure {how.measure!r} must have a value on every example, and it concerns "
                f"{sum(rows)} of {len(rows)} of the {name} (not {example!r}, for one). Choose "
                "another measure, or leave such examples out."
            )
    raise ScanError(
        f"Measure {how.measure!r} must have a value on every example for some head, and each head "
        "lacks one somewhere. Choose another measure, or inputs of one kind."
    )
