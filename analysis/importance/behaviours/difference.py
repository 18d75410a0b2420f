"""Do two groups of examples differ: effect size, permutation test, false discovery rate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERMUTATIONS = 9_999
_BLOCK = 1_024
_TIES = 1e-9
"""Sums in another order round apart: differences this close count as equal."""


def effect_size(one: Array, other: Array) -> Array:
    """Float ``[column]``: difference of the means in units of the pooled standard deviation.

    Cohen's d of ``one [example, column]`` against ``other``; NaN where both are constant.

    >>> effect_size(np.array([[3.0], [5.0]]), np.array([[1.0], [3.0]])).round(4).tolist()
    [1.4142]
    """
    _refuse_few(one, other)
    freedom = len(one) + len(other) - 2
    squares = ((one - one.mean(0)) ** 2).sum(0) + ((other - other.mean(0)) ** 2).sum(0)
    spread = np.sqrt(squares / freedom)
    gap = one.mean(0) - other.mean(0)
    return np.divide(gap, spread, out=np.full_like(gap, np.nan), where=spread > 0)


def permutation_p(
    one: Array, other: Array, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Array, int]:
    """Two-sided p values ``[column]`` for a difference of means, and how many splits they rest on.

    All splits of the examples into groups of these sizes are gone through if there are at most
    ``permutations + 1``; then p is exact. Else as many are drawn and p is
    ``(1 + #at least as far) / (1 + #drawn)`` (Phipson and Smyth, 2010). It is never 0. The same
    splits serve all columns.
    """
    _refuse_few(one, other)
    values = np.concatenate([one, other]).astype(np.float64)
    values = values - values.mean(0)
    first, n = len(one), len(values)
    # With the mean taken off, the first group's sum decides the difference of the means.
    seen = np.abs(values[:first].sum(0))
    limit = seen - _TIES * np.maximum(seen, np.abs(values).max(0))
    splits = comb(n, first)
    exact = splits <= permutations + 1
    reached, total = np.zeros(values.shape[1], dtype=np.int64), 0
    drawn = _every_split(n, first) if exact else _random_splits(n, first, permutations, seed)
    for members in drawn:
        reached += (np.abs(members @ values) >= limit).sum(0)
        total += len(members)
    if exact:
        return reached / total, total
    return (1 + reached) / (1 + total), total


def false_discovery(p: Array) -> Array:
    """Benjamini and Hochberg's (1995) adjusted p values ``[test]``; NaN stays NaN.

    Tests with a value of at most q hold q false ones among them on average.

    >>> false_discovery(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return adjusted


def _every_split(n: int, first: int) -> Iterator[Array]:
    every = combinations(range(n), first)
    while block := list(islice(every, _BLOCK)):
        members = np.zeros((len(block), n))
        np.put_along_axis(members, np.array(block), 1.0, axis=1)
        yield members


def _random_splits(n: int, first: int, count: int, seed: int) -> Iterator[Array]:
    generator = np.random.default_rng([seed, n, first])
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        chosen = generator.random((size, n)).argpartition(first - 1, axis=1)[:, :first]
        members = np.zeros((size, n))
        np.put_along_axis(members, chosen, 1.0, axis=1)
        yield members


def _refuse_few(one: Array, other: Array) -> None:
    if len(one) < 2 or len(other) < 2:
        raise ValueError(
            f"Both sets must have at least 2 examples to be compared, got {len(one)} and "
            f"{len(other)}. Give more."
        )
