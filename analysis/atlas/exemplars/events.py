"""Events as rows of arrays: which query read which key how much, and in which order they stand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EVENT = np.dtype(
    [
        ("order", np.int64),
        ("example", np.uint64),
        ("query", np.int64),
        ("key", np.int64),
        ("weight", np.float32),
        ("share", np.float32),
        ("contribution", np.float32),
        ("contribution_share", np.float32),
    ]
)
"""``order``: the larger, the stronger, -1 for no event. ``example``: `keyed.example_key`.
``query`` and ``key``: places of a `PlaceStore`, -1 for none."""

Events = NDArray[np.void]

_DROPPED_BITS = 11
_KEY_BITS = 43


def ordered(values: NDArray[np.float32], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Int64 by which events are compared: the value to 1 part in 4,096, then the position's key.

    Rounding in the last digits, which another batch size brings, so seldom changes an order; and
    values that are alike do not all come from where the data begins. Order -1 where the value is
    not above 0 (NaN included).
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    coarse = (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS
    order = (coarse << _KEY_BITS) | (keys >> (63 - _KEY_BITS))
    return np.where(values > 0, order, -1)


def place_in_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal neighbours stand before each entry of a sorted array.

    >>> place_in_group(np.array([4, 4, 7, 7, 7])).tolist()
    [0, 1, 0, 1, 2]
    """
    index = np.arange(groups.size)
    new = np.ones(groups.size, dtype=bool)
    new[1:] = groups[1:] != groups[:-1]
    return index - np.maximum.accumulate(np.where(new, index, 0))


def few_of_each(
    groups: NDArray[np.int64], examples: NDArray[np.uint64], most: int
) -> NDArray[np.bool_]:
    """Which entries are among the first ``most`` of their example within their group."""
    by_example = np.lexsort((np.arange(groups.size), examples, groups))
    same = np.ones(groups.size, dtype=bool)
    g, e = groups[by_example], examples[by_example]
    same[1:] = (g[1:] != g[:-1]) | (e[1:] != e[:-1])
    kept = np.empty(groups.size, dtype=bool)
    kept[by_example] = place_in_group(np.cumsum(same)) < most
    return kept
