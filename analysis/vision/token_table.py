"""T-VHD token by token, and hallucinated against true object words with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import LEVEL, REPLICATES, poisson_weights
from analysis.vision.words import HALLUCINATED, TRUE

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Index = NDArray[np.int64]
T_VHD = "t_vhd"


WAYS = {
    "mentions": None,
    "mentions of one text": "example",
    "mentions of one kind": "kind",
    "mentions at one place": "token",
}
"""How mentions are compared -> what must be alike in those that are compared with each other."""
_ROWS = 512


def comparison(
    tokens: pd.DataFrame, *, replicates: int = REPLICATES, seed: int = 0
) -> pd.DataFrame:
    """Is T-VHD lower at hallucinated object words than at true ones?

    A mention counts once, with the mean of its tokens. All hallucinated mentions are compared with
    all true ones (``mentions``), and each with the true ones of the same text, of the same kind of
    object, and at the same place of its text, as words that come later have more text before them
    and some objects are harder to see. ``texts`` compares the mean over all words of texts with a
    hallucinated object and without.

    Args:
        tokens: one line per token: `example token group kind mention`, and columns that begin with
            ``t_vhd``.

    Returns:
        One line per way of comparing and per T-VHD: means of ``hallucinated`` and ``true`` (the
        latter weighted as the hallucinated ones they are compared with), their ``difference``
        with the 95 % bootstrap interval over examples, and ``lower``: how often the hallucinated
        one of two is the lower one (.5: no difference; ties count half), with its interval. Ways
        in which nothing can be compared are left out.
    """
    import pandas as pd

    said = tokens[tokens["mention"] >= 0] if len(tokens) else tokens
    if not len(said):
        return pd.DataFrame()
    named = [str(name) for name in tokens if str(name).startswith(T_VHD)]
    means = dict.fromkeys(named, "mean") | dict.fromkeys(("group", "kind", "token"), "first")
    mentions = said.groupby(["example", "mention"], sort=False).agg(means).reset_index()
    known = tokens[tokens["group"] != ""]  # of other texts nobody knows what is made up
    texts = known.groupby("example", sort=False)[named].mean().reset_index()
    wrong = tokens["example"][tokens["group"] == HALLUCINATED]
    texts["group"] = np.where(texts["example"].isin(wrong), HALLUCINATED, TRUE)
    frames = [(way, alike, mentions) for way, alike in WAYS.items()] + [("texts", None, texts)]
    lines = [
        _line(frame, name, way, alike, replicates, seed)
        for way, alike, frame in frames
        for name in named
    ]
    return pd.DataFrame([line for line in lines if line is not None])


def _line(
    frame: pd.DataFrame, name: str, way: str, alike: str | None, replicates: int, seed: int
) -> dict[str, Any] | None:
    """One line of the table, None where no hallucinated one has a true one to compare with."""
    wrong = (frame["group"] == HALLUCINATED).to_numpy()
    kinds = np.zeros(len(frame)) if alike is None else frame[alike].to_numpy()
    strata = []
    for kind in dict.fromkeys(kinds.tolist()):
        mine = kinds == kind
        one, other = (mine & wrong).nonzero()[0], (mine & ~wrong).nonzero()[0]
        if len(one) and len(other):
            strata.append((one, other))
    if not strata:
        return None
    used = np.concatenate([np.concatenate(pair) for pair in strata])
    ids = frame["example"].astype(str).to_numpy()
    names = list(dict.fromkeys(ids[used].tolist()))
    draws = {name: poisson_weights(name, replicates, seed) for name in names}
    weights = np.ones((1 + replicates, len(frame)))
    weights[1:, used] = np.stack([draws[name] for name in ids[used]], axis=1)
    found = _estimates(frame[name].to_numpy(dtype=np.float64), strata, weights)
    line: dict[str, Any] = {"compared": way, "measure": name}
    line |= {"hallucinated": found[0, 0], "true": found[0, 1]}
    for number, what in ((2, "difference"), (3, "lower")):
        line[what] = found[0, number]
        line[f"{what}_low"], line[f"{what}_high"] = _interval(found[1:, number], len(names))
    counts = (sum(len(pair[number]) for pair in strata) for number in (0, 1))
    return line | dict(zip(("n_hallucinated", "n_true"), counts, strict=True), texts=len(names))


def _estimates(values: Array, strata: Sequence[tuple[Index, Index]], weights: Array) -> Array:
    """Float ``[draw 4]``: both means, their difference, and how often the first is lower.

    Each stratum counts as much as its hallucinated ones do, if it has true ones to compare with.
    """
    total = np.zeros((len(weights), 4))
    counted = np.zeros(len(weights))
    for one, other in strata:
        first, second = weights[:, one], weights[:, other]
        size, against = first.sum(1), second.sum(1)
        each = np.divide(1.0, against, out=np.zeros_like(size), where=against > 0)
        size = np.where(against > 0, size, 0.0)
        low = np.where(against > 0, first @ values[one], 0.0)
        high = size * each * (second @ values[other])
        lower = each * _pairs_lower(values[one], values[other], first, second)
        total += np.stack([low, high, low - high, lower], axis=1)
        counted += size
    return np.divide(
        total, counted[:, None], out=np.full_like(total, np.nan), where=counted[:, None] > 0
    )


def _pairs_lower(one: Array, other: Array, first: Array, second: Array) -> Array:
    """Float ``[draw]``: weighted number of pairs in which ``one`` is lower, ties half."""
    found = np.zeros(len(first))
    for start in range(0, len(one), _ROWS):
        some = slice(start, start + _ROWS)
        lower = (one[some, None] < other) + 0.5 * (one[some, None] == other)
        found += ((first[:, some] @ lower) * second).sum(1)
    return found


def _interval(draws: Array, texts: int) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if texts < 2 or known.size == 0:
        return float("nan"), float("nan")
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)
