"""Which head of one model does what a head of another does: the best assignment of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        score: 1 minus the mean squared distance of partners over that of all pairs that might be:
            1 where partners are the same, 0 where they are as far apart as any two heads.
        null: ``[draw]``: the score of the best assignment after the heads of both models were dealt
            out to the two anew, each within its tower. Heads of two models that have nothing to do
            with one another, of one population, score no higher than this; where each head has its
            counterpart, they do.
        p: how often the null reaches the score (`analysis.statistics.exceedance`).
        columns: the features that count.
        notes: which towers were matched although their names differ, and which were not.
    """

    pairs: pd.DataFrame
    unmatched_a: list[tuple[str, int, int]]
    unmatched_b: list[tuple[str, int, int]]
    score: float
    null: Array
    p: float
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        low, high = np.quantile(self.null, [0.025, 0.975])
        told = (
            f"{len(self.pairs)} pairs of heads, score {self.score:.2f} against {low:.2f} to "
            f"{high:.2f} by chance (p = {self.p:.3g})"
        )
        told += ": no closer than heads matched by chance." if self.p > 0.05 else "."
        return " ".join([told, *self.notes])


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

    A head of a tower that both models have is matched within it, of a vision tower with one of the
    vision tower, and dealt out anew within it for the null. Towers that have a name in one model
    only are matched with those of the other that have none there, which ``notes`` says.

    Args:
        a, b: values and nulls per head, of `head_profiles`, each of the same measures, best on
            the same inputs. Numbers of heads may differ.

    Raises:
        ValueError: a model has no heads, or fewer than 3 in all, or no feature is in common.
    """
    import pandas as pd

    if min(len(a[0]), len(b[0])) < 1 or len(a[0]) + len(b[0]) < 3:
        raise ValueError(
            f"Two models to be matched must have heads, at least 3 together, got {len(a[0])} and "
            f"{len(b[0])}. Profile more heads."
        )
    groups, notes = _groups(a, b)
    made = [group for group in groups if group.columns]
    if not made:
        raise ValueError(
            "No feature tells the heads of the two models apart: none is measured in both, or all "
            "are constant. Measure the same features in both."
        )
    notes += [
        f"No feature tells the heads of {group.tower} apart, so they are not matched."
        for group in groups
        if not group.columns
    ]
    dice = np.random.default_rng(seed)
    score = _score([group.squared for group in made])
    null = np.array([_score([group.dealt(dice) for group in made]) for _ in range(draws)])
    names = [f"{name}_{side}" for side in "ab" for name in _HEAD] + ["distance", "closer"]
    pairs = pd.DataFrame([line for group in made for line in group.pairs()], columns=names)
    left, right = (
        {tuple(head) for head in pairs[[f"{name}_{side}" for name in _HEAD]].to_numpy()}
        for side in "ab"
    )
    return Matching(
        pairs=pairs,
        unmatched_a=[head for head in a[0].index if head not in left],
        unmatched_b=[head for head in b[0].index if head not in right],
        score=score,
        null=null,
        p=exceedance(score, null),
        columns=tuple(dict.fromkeys(name for group in made for name in group.columns)),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Group:
    """Heads that may be matched with one another.

    Attributes:
        tower: whose they are, in words.
        heads_a, heads_b: ``(tower, layer, head)`` of each.
        profiles: ``[head column]``, those of a first.
    """

    tower: str
    heads_a: list[tuple[str, int, int]]
    heads_b: list[tuple[str, int, int]]
    profiles: Array
    columns: tuple[str, ...]

    @classmethod
    def of(
        cls, tower: str, a: tuple[pd.DataFrame, ...], b: tuple[pd.DataFrame, ...]
    ) -> _Group:  # fmt: skip
        import pandas as pd

        shared = [name for name in a[0].columns if name in b[0].columns]
        values = pd.concat([a[0][shared], b[0][shared]], ignore_index=True)
        nulls = pd.concat([a[1][shared], b[1][shared]], ignore_index=True)
        columns = choose_columns(values, nulls)
        profiles = columns.apply(values, nulls)
        return cls(
            tower, list(a[0].index), list(b[0].index), profiles - profiles.mean(0), columns.names
        )

    @property
    def squared(self) -> Array:
        """``[head of a, head of b]``: squared distances."""
        return self._squared(np.arange(len(self.profiles)))

    def dealt(self, dice: np.random.Generator) -> Array:
        """The same once the heads are dealt out to the two models anew, as many to each."""
        return self._squared(dice.permutation(len(self.profiles)))

    def pairs(self) -> list[tuple[Any, ...]]:
        """Lines of `Matching.pairs`."""
        from scipy.optimize import linear_sum_assignment

        squared = self.squared
        rows, partners = linear_sum_assignment(squared)
        return [
            (*self.heads_a[i], *self.heads_b[j], float(np.sqrt(squared[i, j])),
             float((squared[i] < squared[i, j]).mean()))
            for i, j in zip(rows.tolist(), partners.tolist(), strict=True)
        ]  # fmt: skip

    def _squared(self, order: NDArray[np.int64]) -> Array:
        count = len(self.heads_a)
        left, right = self.profiles[order[:count]], self.profiles[order[count:]]
        return np.square(left[:, None] - right[None]).sum(-1)


def _groups(
    a: tuple[pd.DataFrame, pd.DataFrame], b: tuple[pd.DataFrame, pd.DataFrame]
) -> tuple[list[_Group], list[str]]:
    """Towers that both have, then what is left of both; and what should be known of it."""
    towers_a, towers_b = (_towers(side[0]) for side in (a, b))
    both = [tower for tower in towers_a if tower in towers_b]
    groups = [_Group.of(tower, _only(a, [tower]), _only(b, [tower])) for tower in both]
    rest_a = [tower for tower in towers_a if tower not in both]
    rest_b = [tower for tower in towers_b if tower not in both]
    one, other = " and ".join(rest_a), " and ".join(rest_b)
    if rest_a and rest_b:
        groups.append(_Group.of(f"{one} and {other}", _only(a, rest_a), _only(b, rest_b)))
        return groups, [
            f"Towers have different names in the two models: heads of {one} are matched with heads "
            f"of {other}."
        ]
    if one or other:
        return groups, [f"One model alone has {one or other}, whose heads have no partner."]
    return groups, []


def _towers(profiles: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(profiles.index.get_level_values("tower")))


def _only(
    of: tuple[pd.DataFrame, pd.DataFrame], towers: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    mine = of[0].index.get_level_values("tower").isin(towers)
    return of[0][mine], of[1][mine]


def _score(squared: list[Array]) -> float:
    """Of the best assignment within each group; partners and pairs of all groups count alike."""
    from scipy.optimize import linear_sum_assignment

    partners = np.concatenate([part[linear_sum_assignment(part)] for part in squared])
    every = float(np.concatenate([part.ravel() for part in squared]).mean())
    return 1 - float(partners.mean()) / every if every > 0 else 1.0
