"""Can a cheap estimate be trusted on this model? Its agreement with the exact effect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from analysis.importance.effects import EFFECTS
from analysis.statistics import Array, null_interval, spearman

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable
    from analysis.scores import Column

AGREEMENT_COLUMNS = (
    "tower exact estimate variant heads spearman ci_low ci_high spearman_absolute ceiling "
    "top overlap overlap_chance overlap_chance_high"
).split()
EXACT = "importance_"
_OF_ANY = "direct"
"""Contributions to a logit, which is what most effects come from."""
_REPLICATES = 1000
_TOP_SHARE = 0.1
_KEY = ["tower", "layer", "head"]


def agreement(
    heads: HeadTable,
    estimates: Collection[str],
    halves: Mapping[Column, tuple[float, float]] | None = None,
    *,
    top: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """How well each estimate ranks the heads, measured on the exact effects of the same inputs.

    Args:
        estimates: measures that stand for an exact effect; both are lines of ``heads``.
        halves: values on two halves of the examples, for the ceiling.
        top: how many heads are the top; default a tenth of them, at least 3.

    Returns:
        One line per tower (and ``all`` together), exact measure and estimate: Spearman's
        correlation with its 95 % interval over heads, the same with the size of the exact effect
        (for estimates that know no sign), the ``ceiling`` (the exact effect on one half of the
        examples against the other), and the share of the top heads that both have in common, with
        what chance gives (mean and 97.5 % quantile of random heads).
    """
    import pandas as pd

    lines = []
    frame = heads.frame
    exact_names = [name for name in heads.measures if name.startswith(EXACT)]
    towers = heads.towers
    for tower in [*towers, "all"] if len(towers) > 1 else towers:
        mine = frame if tower == "all" else frame[frame["tower"] == tower]
        for (exact, exact_variant), true in mine[mine["measure"].isin(exact_names)].groupby(
            ["measure", "variant"], sort=False
        ):
            ceiling = _ceiling(true, str(exact), str(exact_variant), halves)
            for name in heads.measures:
                if name not in estimates or not _of_same_effect(str(exact), name):
                    continue
                rows = mine[mine["measure"] == name]
                for variant, guess in rows.groupby("variant", sort=False):
                    both = true.merge(guess, on=_KEY, suffixes=("", "_guess"))
                    a = both["value"].to_numpy(float)
                    b = both["value_guess"].to_numpy(float)
                    known = np.isfinite(a) & np.isfinite(b)
                    line = _line(a[known], b[known], top, seed)
                    lines.append([tower, exact, name, variant, *line[:5], ceiling, *line[5:]])
    return pd.DataFrame(lines, columns=AGREEMENT_COLUMNS)


def _of_same_effect(exact: str, estimate: str) -> bool:
    """Whether an estimate is of this effect, or of none in particular.

    >>> _of_same_effect("importance_jsd", "atp_logit"), _of_same_effect("importance_jsd", "x_jsd")
    (False, True)
    """
    if estimate.startswith(_OF_ANY):
        return True
    named = [name for name in EFFECTS if estimate.endswith(f"_{name}")]
    return not named or exact.removeprefix(EXACT) in named


def _line(exact: Array, guess: Array, top: int, seed: int) -> list[float]:
    count = exact.size
    draw = np.random.default_rng(seed)
    picks = draw.integers(0, count, (_REPLICATES, count)) if count else np.zeros((0, 0), int)
    low, high = null_interval(np.array([spearman(exact[p], guess[p]) for p in picks]))
    k = min(top or max(3, round(_TOP_SHARE * count)), count)
    best = set(np.argsort(-exact, kind="stable")[:k].tolist())
    found = set(np.argsort(-guess, kind="stable")[:k].tolist())
    overlap = len(best & found) / k if k else float("nan")
    chance = k / count if count else float("nan")
    random = draw.hypergeometric(k, count - k, k, _REPLICATES) / k if k else np.array([np.nan])
    return [
        count,
        spearman(exact, guess),
        low,
        high,
        spearman(np.abs(exact), np.abs(guess)),
        k,
        overlap,
        chance,
        float(np.quantile(random, 0.975)),
    ]


def _ceiling(
    lines: pd.DataFrame,
    measure: str,
    variant: str,
    halves: Mapping[Column, tuple[float, float]] | None,
) -> float:
    """Spearman of the exact effect on one half of the examples with the other half."""
    if not halves:
        return float("nan")
    heads = set(map(tuple, lines[_KEY].to_numpy().tolist()))
    pairs = [
        values
        for column, values in halves.items()
        if (column.measure, column.variant) == (measure, variant)
        and (column.tower, column.layer, column.head) in heads
    ]
    if not pairs:
        return float("nan")
    first, second = np.array(pairs, dtype=float).T
    return spearman(first, second)
