"""How many clusters there are, if any: those that both halves of the patterns find.

A number of clusters counts if both halves agree on it (adjusted Rand index, Hubert and Arabie,
1985), more than halves of a single cloud of the same spread would, and if there is a gap around a
cluster: along the line to each other cluster, drawn with one half, the other half lies in two
heaps. The first alone is not enough: two halves also agree on where to cut a long cloud in two.
Clusters that are the same heads at other sizes are one before anything is counted
(`analysis.atlas.sizes`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.clusters import NO_CLUSTER, Asked, Method, counted, find
from analysis.atlas.dip import SURE
from analysis.atlas.gaps import FEWEST, mean_gaps
from analysis.atlas.halving import Halving, halved
from analysis.atlas.sizes import Sizes
from analysis.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

STABLE = 0.7
"""Least agreement of halves that is called stable."""

LEAST = 40
"""Fewer patterns than this are not cut into halves: nothing could be told from them."""


EVEN = 0.04
"""Agreements that differ by less are as good as each other: a mean of five halvings moves by about
as much from seed to seed. The best of the halvings would not do, as one of five is often lucky."""


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
            index of halves) with ``agreement_low agreement_high`` over the ``halvings``, ``gap``
            (`dip_score` of the most isolated cluster), ``isolated`` (clusters with a sure gap
            around them), ``reference`` (agreement on clouds without structure, the largest) and
            ``holds``. What cannot hold any more is not measured further: halving ends when the
            mean cannot become stable, gaps (NaN) are looked for where it is, and references (NaN)
            where there is a gap.
        why: what speaks for the choice, to be said of clusters (`said_of`); or a sentence why there
            is no structure.
        seconds: how long it took.
    """

    asked: Asked | None
    table: pd.DataFrame
    why: str
    seconds: float

    def said_of(self, labels: Rows) -> str:
        """One sentence: how many clusters ``labels [sample]`` are, and how sure that is."""
        if self.asked is None:
            return self.why
        outside = float((labels == NO_CLUSTER).mean())
        none = f", and {outside:.0%} of the patterns in none" if outside else ""
        return f"{counted(labels)}{none}: {self.why}"

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
    sizes: Sizes | None = None,
) -> Choice:
    """The number of clusters of patterns ``[sample axis]``.

    Of the candidates that hold, those go first of whose clusters at least half have a gap around
    them: halves agree, too, on where to cut a kind that is long. Of these the one with the most
    clusters on which halves agree as well as on any, or nearly so (`EVEN`): two kinds taken
    together are agreed on as well as two kinds told apart.

    Args:
        sizes: of the patterns, where they have several; see `analysis.atlas.clusters.find`.
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
    looked, compared = space[some], None if sizes is None else sizes.of(some)
    clouds = [dice.standard_normal(looked.shape) * looked.std(0) for _ in range(options.references)]
    candidates = _candidates(len(looked), options)
    stage = (progress or Progress()).stage("stability", len(candidates), "numbers of clusters")
    lines = []
    for asked in candidates:
        lines.append(_line(looked, asked, seed, options, clouds, compared))
        stage.step()
    stage.end()
    table = pd.DataFrame(lines)
    asked, why = _judge(table, candidates)
    return Choice(asked, table, why, time.monotonic() - began)


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


def _line(
    space: Array,
    asked: Asked,
    seed: int,
    options: StabilityOptions,
    clouds: Sequence[Array],
    sizes: Sizes | None,
) -> dict[str, object]:
    """A line of the table. What cannot count any more is not measured further."""
    made = _halvings(space, asked, range(seed, seed + options.seeds), sizes)
    agreed = np.array([one.agreed for one in made])
    stable = bool(agreed.mean() >= STABLE)
    widths = mean_gaps([one.gaps for one in made]) if stable else np.zeros(0)
    isolated = int((widths > SURE).sum())
    beside = [
        halved(cloud, asked, seed + turn).agreed
        for turn, cloud in enumerate(clouds)
        if stable and isolated
    ]
    reference = max(beside, default=float("nan"))
    known = float("nan") if not stable else float(widths.max(initial=0.0))
    return {
        "method": asked.method,
        "number": asked.number,
        "clusters": int(np.median([one.clusters for one in made])),
        "halvings": len(made),
        "agreement": float(agreed.mean()),
        "agreement_low": float(agreed.min()),
        "agreement_high": float(agreed.max()),
        "gap": known,
        "isolated": isolated if stable else float("nan"),
        "reference": reference,
        "holds": bool(stable and isolated and not agreed.mean() <= reference),
    }


def _candidates(count: int, options: StabilityOptions) -> list[Asked]:
    if options.method == "hdbscan":
        shares = (0.01, 0.02, 0.03, 0.05, 0.08)
        return [Asked("hdbscan", n) for n in sorted({max(round(s * count), 8) for s in shares})]
    # A half must have a few patterns for each cluster.
    most = min(options.most, count // (2 * FEWEST))
    return [Asked(options.method, number) for number in range(2, most + 1)]


def _halvings(
    space: Array, asked: Asked, seeds: Sequence[int], sizes: Sizes | None
) -> list[Halving]:
    """As many halvings as it takes to see that their mean is not stable, else all."""
    made: list[Halving] = []
    for turn, seed in enumerate(seeds):
        made.append(halved(space, asked, seed, sizes))
        best = sum(one.agreed for one in made) + len(seeds) - 1 - turn
        if best < STABLE * len(seeds):
            break
    return made


def _judge(table: pd.DataFrame, candidates: list[Asked]) -> tuple[Asked | None, str]:
    held = table[table["holds"]]
    if held.empty:
        return None, _why_none(table)
    most = held[2 * held["isolated"] >= held["clusters"]]
    asked = held if most.empty else most
    near = asked[asked["agreement"] >= asked["agreement"].max() - EVEN]
    best = near["clusters"].idxmax()
    line = table.loc[best]
    beside = ""
    if line["reference"] == line["reference"]:
        beside = f"; of a cloud without structure to {line['reference']:.2f} at most"
    return candidates[int(best)], (
        f"halves of the patterns agree to {line['agreement']:.2f} (adjusted Rand index{beside}), "
        f"and there {int(line['isolated'])} of {int(line['clusters'])} have a gap around them."
    )


def _why_none(table: pd.DataFrame) -> str:
    stable = table[table["agreement"] >= STABLE]
    if stable.empty:
        best = table["agreement"].max()
        return (
            f"No structure: halves agree to {best:.2f} at best (adjusted Rand index), which is "
            f"less than {STABLE}."
        )
    best = stable.loc[stable["agreement"].idxmax()]
    beside = f"halves agree to {best['agreement']:.2f} at best (adjusted Rand index)"
    if (stable["isolated"] > 0).any():
        return f"No structure: {beside}, which is no more than halves of a cloud without structure."
    return (
        f"No structure: {beside}, but nothing has a gap around it (score {stable['gap'].max():.2f},"
        f" a gap is sure above {SURE}), so patterns differ by degrees and not by kinds."
    )


def _table(lines: list[dict]) -> pd.DataFrame:
    import pandas as pd

    names = (
        "method", "number", "clusters", "halvings", "agreement", "agreement_low",
        "agreement_high", "gap", "isolated", "reference", "holds",
    )  # fmt: skip
    return pd.DataFrame(lines, columns=list(names))
