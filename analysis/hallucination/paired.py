"""Compare what a model says under several conditions, example by example.

Every metric is a ratio of two sums over examples. A bootstrap replicate draws the examples once for
all conditions, so that a difference is taken within the same examples: what varies between examples
but not between conditions drops out of its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.hallucination.sheet import Metric, Sheet
from analysis.statistics import LEVEL, RatioSums

REPLICATES = 2000
"""More than for head tables: there are few numbers, and their intervals are what is reported."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile bootstrap interval; NaN where it is not known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One metric under one condition.

    Attributes:
        value: the ratio of sums.
        difference: value minus that of the baseline.
        beyond: value minus that of the condition's control; None if it has none.
        n: examples whose denominator is not 0.
    """

    condition: str
    metric: Metric
    value: Estimate
    difference: Estimate
    beyond: Estimate | None
    n: int


def compare(
    conditions: Mapping[str, Sequence[Sheet]],
    baseline: str,
    controls: Mapping[str, str] | None = None,
    averages: Mapping[Metric, Sequence[Metric]] | None = None,
    *,
    seed: int = 0,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> list[Comparison]:
    """All metrics of all conditions, with intervals of the values and of their differences.

    Args:
        conditions: name -> its sheets; several (a control drawn with several seeds) are pooled.
        baseline: the condition that the others are compared with.
        controls: condition -> the condition that is its control.
        averages: further metrics that are means of others (POPE over its three splits).
        seed: of the bootstrap weights, which depend on it and an example's id alone.

    Returns:
        One entry per condition and metric that was measured anywhere, in their order.

    Raises:
        ValueError: conditions were measured on different examples.
    """
    first = conditions[baseline][0]
    metrics = list(
        dict.fromkeys(
            m for sheets in conditions.values() for sheet in sheets for m in sheet.metrics
        )
    )
    drawn = {
        name: _drawn(sheets, first.ids, metrics, averages or {}, seed, replicates)
        for name, sheets in conditions.items()
    }
    every_metric: list[Metric] = [*metrics, *(averages or {})]
    found = []
    for name, own in drawn.items():
        control = drawn.get((controls or {}).get(name, ""))
        for column, metric in enumerate(every_metric):
            found.append(
                Comparison(
                    name,
                    metric,
                    _estimate(own.ratios[:, column], own.n[column], level),
                    _difference(own, drawn[baseline], column, level),
                    None if control is None else _difference(own, control, column, level),
                    int(own.n[column]),
                )
            )
    return found


@dataclass(frozen=True)
class _Drawn:
    """``ratios [1 + replicates, metric]``: on all examples, then in each replicate."""

    ratios: Array
    n: NDArray[np.int64]


def _drawn(
    sheets: Sequence[Sheet],
    ids: Sequence[str],
    metrics: Sequence[Metric],
    averages: Mapping[Metric, Sequence[Metric]],
    seed: int,
    replicates: int,
) -> _Drawn:
    top, bottom = np.zeros((2, len(ids), len(metrics)))
    for sheet in sheets:
        numerator, denominator = sheet.lined_up(ids, metrics)
        top, bottom = top + numerator, bottom + denominator
    sums = RatioSums.empty(len(metrics), replicates=replicates, seed=seed)
    sums.add(ids, top, bottom)
    ratios, counts = sums.replicate_values, list(sums.n)
    ratios = np.concatenate([sums.value[None], ratios])
    for parts in averages.values():
        columns = [metrics.index(part) for part in parts if part in metrics]
        mean = ratios[:, columns].mean(axis=1) if columns else np.full(len(ratios), np.nan)
        ratios = np.column_stack([ratios, mean])
        counts.append(min((sums.n[column] for column in columns), default=0))
    return _Drawn(ratios, np.array(counts, dtype=np.int64))


def _difference(own: _Drawn, other: _Drawn, column: int, level: float) -> Estimate:
    n = min(own.n[column], other.n[column])
    return _estimate(own.ratios[:, column] - other.ratios[:, column], n, level)


def _estimate(drawn: Array, n: int, level: float) -> Estimate:
    known = drawn[1:][np.isfinite(drawn[1:])]
    if n < 2 or not known.size:
        return Estimate(float(drawn[0]), float("nan"), float("nan"))
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(float(drawn[0]), float(low), float(high))
