"""How many clusters there are, if any: those that both halves of the patterns find.

A number of clusters counts if both halves agree on it (adjusted Rand index, Hubert and Arabie,
1985), more than halves of a single cloud of the same spread would, and if there is a gap around a
cluster: along the line to each other cluster, drawn with one half, the other half lies in two
heaps. The first alone is not enough: two halves also agree on where to cut a long cloud in two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.clusters import Asked, Found, Method, find
from analysis.atlas.dip import SURE, dip_score
from analysis.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

STABLE = 0.7
"""Least agreement of halves that is called stable."""

LEAST = 40
"""Fewer patterns than this are not cut into halves: nothing could be told from them."""

_EVEN = 0.01
_LOPSIDED = 3
_FEWEST = 8
_RIDGE = 1e-3


@dataclass(frozen=True)
class StabilityOptions:
    """What is tried, and how often.

    Attributes:
        method: of `analysis.atlas.clusters.Asked`.
        most: the largest number of clusters that is tried.
        seeds: so many times the patterns are halved, each with other starts.
        references: clouds without structure, each halved once.
        patterns: at most so many are looked at, drawn evenly.
    """

    method: Method = "mixture"
    most: int = 12
    seeds: int = 5
    references: int = 5
    patterns: int = 3000


@dataclass(frozen=True)
class Choice:
    """The number of clusters that was chosen, and what speaks for each.

    Attributes:
        asked: what was chosen; None where there is no structure.
        table: a line per candidate: ``method number clusters``, ``agreement`` (mean adjusted Rand
            index of halves) with ``agreement_low agreement_high`` over the seeds, ``reference``
            (the largest of the clouds without structure), ``gap`` (`dip_score` of the most
            isolated cluster), ``isolated`` (clusters with a sure gap around them) and ``holds``.
        verdict: one sentence.
        seconds: how long it took.
    """

    asked: Asked | None
    table: pd.DataFrame
    verdict: str
    seconds: float

    @property
    def agreement(self) -> float:
        """Adjusted Rand index of the chosen clusters between halves, NaN where there are none."""
        if self.asked is None:
            return float("nan")
        return float(self.table.loc[self.table["number"] == self.asked.number, "agreement"].iloc[0])


def choose(
    space: Array,
    seed: int,
    options: StabilityOptions | None = None,
    progress: Progress | None = None,
) -> Choice:
    """The number of clusters of patterns ``[sample axis]``.

    Of the candidates that hold, the one that halves agree on best; of those that come within 0.01
    of its mean in their best halving, the one with the most clusters: two kinds taken together are
    agreed on as well as two kinds told apart.
    """
    import pandas as pd

    options = options or StabilityOptions()
    began = time.monotonic()
    dice = np.random.default_rng(seed)
    if len(space) < LEAST:
        why = (
            f"Too few patterns to tell clusters: there are {len(space)}, and at least {LEAST} are "
            "needed. Take more samples."
        )
        return Choice(None, _table([]), why, time.monotonic() - began)
    if float(space.var(0).sum()) <= 1e-20:
        return Choice(None, _table([]), "No structure: all patterns are the same.", 0.0)
    some = np.sort(dice.permutation(len(space))[: options.patterns])
    looked = space[some]
    clouds = [dice.standard_normal(looked.shape) * looked.std(0) for _ in range(options.references)]
    candidates = _candidates(len(looked), options)
    stage = (progress or Progress()).stage("stability", len(candidates), "numbers of clusters")
    lines = []
    for asked in candidates:
        halves = [_halved(looked, asked, seed + turn) for turn in range(options.seeds)]
        agreed = np.array([score for score, _ in halves])
        gaps = _mean_gaps([gap for _, gap in halves])
        beside = [_halved(cloud, asked, seed + n, gaps=False)[0] for n, cloud in enumerate(clouds)]
        reference = max(beside, default=float("nan"))
        isolated = int((gaps > SURE).sum())
        lines.append(
            {
                "method": asked.method,
                "number": asked.number,
                "clusters": asked.number if asked.method != "hdbscan" else len(gaps),
                "agreement": float(agreed.mean()),
                "agreement_low": float(agreed.min()),
                "agreement_high": float(agreed.max()),
                "reference": reference,
                "gap": float(gaps.max(initial=0.0)),
                "isolated": isolated,
                "holds": bool(
                    agreed.mean() >= STABLE and not agreed.mean() <= reference and isolated >= 1
                ),
            }
        )
        stage.step()
    stage.end()
    table = pd.DataFrame(lines)
    asked, verdict = _judge(table, candidates)
    return Choice(asked, table, verdict, time.monotonic() - began)


def agreement_of_seeds(space: Array, asked: Asked, seeds: Sequence[int]) -> Array:
    """Float ``[pair]``: adjusted Rand index of each two seeds on all patterns ``[sample axis]``."""
    from sklearn.metrics import adjusted_rand_score

    labels = [find(space, asked, seed).labels for seed in seeds]
    return np.array(
        [
            adjusted_rand_score(labels[i], labels[j])
            for i in range(len(labels))
            for j in range(i + 1, len(labels))
        ]
    )


def _candidates(count: int, options: StabilityOptions) -> list[Asked]:
    if options.method == "hdbscan":
        shares = (0.01, 0.02, 0.03, 0.05, 0.08)
        return [Asked("hdbscan", n) for n in sorted({max(round(s * count), 8) for s in shares})]
    # A half must have a few patterns for each cluster.
    most = min(options.most, count // (2 * _FEWEST))
    return [Asked(options.method, number) for number in range(2, most + 1)]


def _halved(space: Array, asked: Asked, seed: int, gaps: bool = True) -> tuple[float, Array]:
    """How well two halves agree on the second, and how isolated each cluster of the first is."""
    from sklearn.metrics import adjusted_rand_score

    order = np.random.default_rng(seed).permutation(len(space))
    first, second = space[order[: len(space) // 2]], space[order[len(space) // 2 :]]
    try:
        mine = find(first, asked.halved(), seed)
        theirs = find(second, asked.halved(), seed + 1)
    except ValueError:
        # A half has fewer different patterns than clusters, so there are not so many.
        return 0.0, np.zeros(0)
    placed = mine.place(second)
    agreed = float(adjusted_rand_score(placed, theirs.labels))
    if asked.method == "hdbscan" and max(mine.count, theirs.count) == 0:
        agreed = 0.0  # Both found nothing, which is no agreement on clusters.
    return agreed, _gaps(mine, second, placed) if gaps else np.zeros(0)


def _gaps(mine: Found, second: Array, placed: NDArray[np.int64]) -> Array:
    """Float ``[cluster]``: the least `dip_score` of the other half on lines to other clusters."""
    count = mine.count
    least = np.full(count, np.inf)
    for one in range(count):
        for other in range(one):
            score = _pair_gap(mine, second, placed, one, other)
            least[[one, other]] = np.minimum(least[[one, other]], score)
    return np.where(np.isfinite(least), least, 0.0)


def _pair_gap(mine: Found, second: Array, placed: NDArray[np.int64], one: int, other: int) -> float:
    here, there = mine.space[mine.labels == one], mine.space[mine.labels == other]
    left, right = second[placed == one], second[placed == other]
    if min(len(here), len(there), len(left), len(right)) < _FEWEST:
        return 0.0
    middle = here.mean(0), there.mean(0)
    within = np.concatenate([here - middle[0], there - middle[1]])
    spread = within.T @ within / len(within)
    spread += _RIDGE * max(float(mine.space.var(0).sum()), 1e-12) * np.eye(len(spread))
    line = np.linalg.solve(spread, middle[0] - middle[1])
    # A large cluster is thinned: else its own heap hides a small one beside it.
    most = _LOPSIDED * min(len(left), len(right))
    return dip_score(np.concatenate([_thinned(left, most), _thinned(right, most)]) @ line)


def _thinned(values: Array, most: int) -> Array:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]


def _mean_gaps(found: list[Array]) -> Array:
    """The mean over halvings of the widest gap, of the second, and so on, as far as most have it.

    Clusters of two halvings have no names in common, so they are compared by rank.
    """
    count = int(np.median([len(gaps) for gaps in found]))
    ranked = np.zeros((len(found), count))
    for turn, gaps in enumerate(found):
        widest = np.sort(gaps)[::-1][:count]
        ranked[turn, : len(widest)] = widest
    return ranked.mean(0)


def _judge(table: pd.DataFrame, candidates: list[Asked]) -> tuple[Asked | None, str]:
    held = table[table["holds"]]
    if held.empty:
        return None, _why_none(table)
    near = held[held["agreement_high"] >= held["agreement"].max() - _EVEN]
    best = near["clusters"].idxmax()
    line = table.loc[best]
    return candidates[int(best)], (
        f"{int(line['clusters'])} clusters: halves agree to {line['agreement']:.2f} (adjusted Rand "
        f"index; a cloud without structure to {line['reference']:.2f} at most), and "
        f"{int(line['isolated'])} of them have a gap around them."
    )


def _why_none(table: pd.DataFrame) -> str:
    best = table.loc[table["agreement"].idxmax()]
    beside = f"halves agree to {best['agreement']:.2f} at best (adjusted Rand index)"
    stable = table[(table["agreement"] >= STABLE) & ~(table["agreement"] <= table["reference"])]
    if stable.empty:
        return f"No structure: {beside}, which is less than {STABLE} or no more than by chance."
    return (
        f"No structure: {beside}, but nothing has a gap around it (score {table['gap'].max():.2f}, "
        f"a gap is sure above {SURE}), so patterns differ by degrees and not by kinds."
    )


def _table(lines: list[dict]) -> pd.DataFrame:
    import pandas as pd

    names = (
        "method", "number", "clusters", "agreement", "agreement_low", "agreement_high",
        "reference", "gap", "isolated", "holds",
    )  # fmt: skip
    return pd.DataFrame(lines, columns=list(names))
