"""Which head of one model does what a head of another does: the best assignment of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.features_space import choose_columns
from analysis.statistics import exceedance

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

DRAWS = 200
_HEAD = ["tower", "layer", "head"]


@dataclass(frozen=True)
class Matching:
    """Heads of two models or checkpoints, matched.

    Attributes:
        pairs: a line per matched pair: ``tower layer head`` with ``_a`` and ``_b``, ``distance``
            (between profiles) and ``closer``: share of the heads of b that are closer to the head
            of a than its partner is; 0 where the partner is the closest.
        unmatched_a, unmatched_b: heads without partner, where one model has more.
        score: 1 minus the mean squared distance of partners over that of all pairs: 1 where
            partners are the same, 0 where they are as far apart as any two heads.
        null: ``[draw]``: the score of the best assignment after all heads of both models were dealt
            out to the two anew. Heads of two models that have nothing to do with one another, of
            one population, score no higher than this; where each head has its counterpart, they do.
        p: how often the null reaches the score (`analysis.statistics.exceedance`).
        columns: the features that count.
    """

    pairs: pd.DataFrame
    unmatched_a: list[tuple[str, int, int]]
    unmatched_b: list[tuple[str, int, int]]
    score: float
    null: Array
    p: float
    columns: tuple[str, ...]

    @property
    def sentence(self) -> str:
        low, high = np.quantile(self.null, [0.025, 0.975])
        told = (
            f"{len(self.pairs)} pairs of heads, score {self.score:.2f} against {low:.2f} to "
            f"{high:.2f} by chance (p = {self.p:.3g})"
        )
        if self.p > 0.05:
            return f"{told}: no closer than heads matched by chance."
        return f"{told}."


def head_profiles(values: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Means per head, a line per ``(tower, layer, head)``; NaN where never measured."""
    keys = [samples[name].to_numpy() for name in _HEAD]
    made = values.reset_index(drop=True).groupby(keys, sort=True).mean()
    return made.rename_axis(index=_HEAD)


def match_heads(
    a: tuple[pd.DataFrame, pd.DataFrame],
    b: tuple[pd.DataFrame, pd.DataFrame],
    seed: int,
    draws: int = DRAWS,
) -> Matching:
    """The assignment of heads with the least sum of squared distances between profiles.

    Args:
        a, b: values and nulls per head, of `head_profiles`, each of the same measures, best on
            the same inputs. Numbers of heads may differ.

    Raises:
        ValueError: a model has no heads, or fewer than 3 in all, or no feature is in common.
    """
    import pandas as pd
    from scipy.optimize import linear_sum_assignment

    if min(len(a[0]), len(b[0])) < 1 or len(a[0]) + len(b[0]) < 3:
        raise ValueError(
            f"Two models to be matched must have heads, at least 3 together, got {len(a[0])} and "
            f"{len(b[0])}. Profile more heads."
        )
    shared = [name for name in a[0].columns if name in b[0].columns]
    values = pd.concat([a[0][shared], b[0][shared]], ignore_index=True)
    nulls = pd.concat([a[1][shared], b[1][shared]], ignore_index=True)
    columns = choose_columns(values, nulls)
    if not columns.names:
        raise ValueError(
            "No feature tells the heads of the two models apart: none is measured in both, or all "
            "are constant. Measure the same features in both."
        )
    profiles = columns.apply(values, nulls)
    profiles -= profiles.mean(0)
    left, right = profiles[: len(a[0])], profiles[len(a[0]) :]
    squared = _squared(left, right)
    rows, partners = linear_sum_assignment(squared)
    score = _score(squared, rows, partners)
    dice = np.random.default_rng(seed)
    null = np.array([_dealt_score(profiles, len(left), dice) for _ in range(draws)])
    heads_a, heads_b = list(a[0].index), list(b[0].index)

    def closer(i: int, j: int) -> float:
        return float((squared[i] < squared[i, j]).mean())

    lines = [
        (*heads_a[i], *heads_b[j], float(np.sqrt(squared[i, j])), closer(i, j))
        for i, j in zip(rows.tolist(), partners.tolist(), strict=True)
    ]  # fmt: skip
    names = [f"{name}_{side}" for side in "ab" for name in _HEAD] + ["distance", "closer"]
    return Matching(
        pairs=pd.DataFrame(lines, columns=names),
        unmatched_a=[head for i, head in enumerate(heads_a) if i not in set(rows.tolist())],
        unmatched_b=[head for j, head in enumerate(heads_b) if j not in set(partners.tolist())],
        score=score,
        null=null,
        p=exceedance(score, null),
        columns=columns.names,
    )


def _squared(left: Array, right: Array) -> Array:
    return np.square(left[:, None] - right[None]).sum(-1)


def _score(squared: Array, rows: NDArray[np.int64], partners: NDArray[np.int64]) -> float:
    every = float(squared.mean())
    return 1 - float(squared[rows, partners].mean()) / every if every > 0 else 1.0


def _dealt_score(profiles: Array, count: int, dice: np.random.Generator) -> float:
    """The best score once all heads are dealt out to two models anew, so many to the first."""
    from scipy.optimize import linear_sum_assignment

    order = dice.permutation(len(profiles))
    squared = _squared(profiles[order[:count]], profiles[order[count:]])
    return _score(squared, *linear_sum_assignment(squared))
