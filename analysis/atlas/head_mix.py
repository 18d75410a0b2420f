"""What a head does over its inputs: always the same kind of pattern, or now this, now that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

STEADY = 0.8
"""Share of a head's patterns in one cluster from which it is called steady."""

NO_CLUSTERS = "no clusters"
"""Verdict of all heads where all patterns are in one cluster: nothing can be told."""

FEWEST = 5
"""With fewer patterns than this a head is not judged."""

_DEALS = 1000


def entropy_nats(counts: Array) -> Array:
    """Float ``[head]``: entropy of each row of counts ``[head cluster]``; 0 where there is one.

    >>> entropy_nats(np.array([[4.0, 0.0], [2.0, 2.0]])).round(3).tolist()
    [0.0, 0.693]
    """
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    return np.abs(-(share * logs).sum(-1))


def head_mix(labels: NDArray[np.int64], samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Each head's mix of clusters: a line per head.

    The null deals all patterns out to the heads anew, each keeping its number: a head whose
    entropy is no lower than then says nothing of its own. The entropy of few patterns is too low,
    and so is that of its null.

    Returns:
        ``tower layer head``; ``patterns``, how many it has; a column ``cluster <n>`` per cluster
        with its share (``no cluster`` for -1); ``entropy_nats``; ``null_nats``,
        ``null_low_nats`` and ``null_high_nats``, mean, 5 % and 95 % quantile under the null; ``p``,
        how often the null is as low; ``most``, the number of its most frequent cluster, and
        ``most_share``; ``verdict``: ``steady`` (at least 0.8 in one cluster),
        ``content-dependent``,
        ``too few patterns``, or ``no clusters`` where there is one cluster alone.
    """
    import pandas as pd

    groups = samples.groupby(["tower", "layer", "head"], sort=True)
    head = groups.ngroup().to_numpy()
    keys = list(groups.groups)
    known = np.unique(labels)
    column = np.searchsorted(known, labels)
    counts = _counts(head, column, len(keys), len(known))
    entropy = entropy_nats(counts)
    dice = np.random.default_rng(seed)
    dealt = np.stack(
        [
            entropy_nats(_counts(head, dice.permutation(column), len(keys), len(known)))
            for _ in range(_DEALS)
        ]
    )
    many = counts.sum(1)
    share = counts / many[:, None]
    most = share.argmax(1)
    top = share[np.arange(len(keys)), most]
    made = pd.DataFrame(keys, columns=["tower", "layer", "head"])
    made["patterns"] = many.astype(int)
    for place, label in enumerate(known.tolist()):
        made["no cluster" if label < 0 else f"cluster {label}"] = share[:, place]
    made["entropy_nats"] = entropy
    made["null_nats"] = dealt.mean(0)
    made["null_low_nats"] = np.quantile(dealt, 0.05, axis=0)
    made["null_high_nats"] = np.quantile(dealt, 0.95, axis=0)
    made["p"] = (1 + (dealt <= entropy + 1e-12).sum(0)) / (1 + _DEALS)
    made["most"] = known[most]
    made["most_share"] = top
    verdict = np.where(top >= STEADY, "steady", "content-dependent")
    verdict = verdict if len(known) > 1 else NO_CLUSTERS
    made["verdict"] = np.where(many < FEWEST, "too few patterns", verdict)
    return made


def _counts(head: NDArray[np.int64], column: NDArray[np.int64], heads: int, columns: int) -> Array:
    flat = np.bincount(head * columns + column, minlength=heads * columns)
    return flat.reshape(heads, columns).astype(np.float64)
