"""How sure a difference is: intervals from two intervals or from pairs, p values, ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import LEVEL

Array = NDArray[np.float64]
_TAIL = (1 - LEVEL) / 2


def expanded(value: Array, low: Array, high: Array, n: Array) -> tuple[Array, Array]:
    """Percentile intervals of ``n`` examples, widened to those that a t interval would have.

    The bootstrap's own are too narrow by the factor ``sqrt(n / (n - 1)) t / z`` (Hesterberg,
    "What Teachers Should Know About the Bootstrap", 2015, section 5.1): 1.22 at 10 examples, 1.02
    at 100. NaN with fewer than 2.
    """
    from scipy.special import ndtri, stdtrit

    enough = n >= 2
    free = np.where(enough, n - 1, np.nan)
    factor = np.sqrt(n / free) * stdtrit(free, _TAIL) / ndtri(_TAIL)
    factor = np.where(enough, factor, np.nan)
    return value - factor * np.maximum(value - low, 0), value + factor * np.maximum(high - value, 0)


def of_difference(
    left: Array, left_ends: tuple[Array, Array], right: Array, right_ends: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Interval of ``right - left`` where both were measured on examples of their own.

    Each end is as far from the difference as the two ends that push it there are from theirs, in
    quadrature: MOVER (Zou and Donner, Statistics in Medicine 27, 2008), which keeps the lean of
    skewed intervals. On the same examples it is too wide wherever these move both values alike.
    """
    difference = right - left
    down = np.hypot(right - right_ends[0], left_ends[1] - left)
    up = np.hypot(right_ends[1] - right, left - left_ends[0])
    return difference - down, difference + up


def freedom(
    left: Array, left_ends: tuple[Array, Array], right: Array, right_ends: tuple[Array, Array],
    n_left: Array, n_right: Array,
) -> Array:  # fmt: skip
    """Degrees of freedom of the difference of two means (Welch), from the widths of both."""
    a, b = (left_ends[1] - left_ends[0]) ** 2, (right_ends[1] - right_ends[0]) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (a + b) ** 2 / (a**2 / (n_left - 1) + b**2 / (n_right - 1))
    return np.where(a + b > 0, found, n_left + n_right - 2)


def p_values(difference: Array, low: Array, high: Array, free: Array) -> Array:
    """Two-sided p of no difference: below 0.05 exactly where the 95 % interval leaves out 0.

    The end that lies towards 0 is taken for the 2.5 % point of a t distribution. An interval
    without width says 0 where there is a difference, 1 where there is none.
    """
    from scipy.special import stdtr, stdtrit

    towards = np.where(difference >= 0, difference - low, high - difference)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.abs(difference) / towards * -stdtrit(free, _TAIL)
    steps = np.where((towards == 0) & (difference == 0), 0.0, steps)
    found = 2 * stdtr(free, -steps)
    return np.where(np.isfinite(difference) & np.isfinite(towards), found, np.nan)


def false_discoveries(p: Array) -> Array:
    """Benjamini and Hochberg's q: calling all heads with q of 0.05 and less moved, at most 5 % of
    them are called so by chance, on average. NaN stays.

    >>> false_discoveries(np.array([0.01, 0.04, 0.03, 0.9])).round(3).tolist()
    [0.04, 0.053, 0.053, 0.9]
    """
    found = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * order.size / np.arange(1, order.size + 1)
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return found


def of_rank_correlation(correlation: float, heads: int) -> tuple[float, float]:
    """95 % interval of Spearman's correlation, over heads as if they were drawn.

    Fisher's transform with the variance of Bonett and Wright (Psychometrika 65, 2000),
    ``(1 + r^2 / 2) / (heads - 3)``; NaN with fewer than 4.
    """
    from scipy.special import ndtri

    if heads < 4 or not np.isfinite(correlation):
        return float("nan"), float("nan")
    if abs(correlation) == 1:
        return correlation, correlation
    middle = np.arctanh(correlation)
    half = -ndtri(_TAIL) * np.sqrt((1 + correlation**2 / 2) / (heads - 3))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
