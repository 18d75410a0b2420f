"""A streaming measure as one number for each head and example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.engine import Engine
from analysis.importance.behaviours.activity import HeadValues
from analysis.importance.scans.options import ScanError
from analysis.measures import select_measures
from analysis.scores import BatchScores
from probes.heads import Head
from probes.listening import listen

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.subject import Subject


def measured(
    subject: Subject, data: Data, measure: str, variant: str, towers: Sequence[str]
) -> HeadValues:
    """The value of a measure for every head of some towers on every example.

    Args:
        variant: of the measure; may be empty where it has one only, or a plain one.

    Raises:
        ScanError: the measure gives no number per head in these towers, or has several variants
            and none was named.
        ValueError: there is no example.
    """
    engine = Engine(subject.layout, select_measures([measure]))
    sites = [place.site for name in towers for place in subject.towers[name].sites.values()]
    parts = []
    for batch in data():
        engine.start_batch(batch.tokens, [example.id for example in batch.examples])
        with listen(subject, batch, engine.listener, sites):
            subject.forward(batch)
        parts.append(engine.finish_batch())
    if not parts:
        raise ValueError("Both sets must hold examples, one is empty. Give some.")
    scores = BatchScores.merge(parts)
    chosen = _variant(scores, measure, variant, towers)
    values = (scores.numerator / scores.denominator).numpy()  # NaN at 0 / 0: not concerned
    kept = {
        Head(column.tower, column.layer, column.head): index
        for index, column in enumerate(scores.columns)
        if column.variant == chosen
    }
    heads = sorted(kept, key=lambda head: (list(towers).index(head.tower), head))
    unit = scores.columns[kept[heads[0]]].unit
    return HeadValues(
        values[:, [kept[head] for head in heads]],
        scores.examples,
        tuple(heads),
        (measure,) * len(heads),
        unit,
    )


def on_same_heads(one: HeadValues, other: HeadValues) -> tuple[HeadValues, HeadValues]:
    """Both with the heads of either, NaN where one of them has no values of a head."""
    heads = tuple(dict.fromkeys([*one.heads, *other.heads]))
    kinds = dict(zip(other.heads + one.heads, other.of + one.of, strict=True))
    found = []
    for given in (one, other):
        values = np.full((len(given.examples), len(heads)), np.nan)
        values[:, [heads.index(head) for head in given.heads]] = given.values
        of = tuple(kinds[head] for head in heads)
        found.append(HeadValues(values, given.examples, heads, of, given.unit))
    return found[0], found[1]


def _variant(scores: BatchScores, measure: str, variant: str, towers: Sequence[str]) -> str:
    there = list(dict.fromkeys(column.variant for column in scores.columns))
    if not there:
        reasons = [scores.reasons.get((tower, measure)) for tower in towers]
        why = next((reason for reason in reasons if reason), "it gives a curve per head.")
        raise ScanError(
            f"Measure {measure!r} must give a number for each head of {', '.join(towers)}: {why} "
            "Choose another measure, or other towers."
        )
    if variant in there:
        return variant
    if not variant and len(there) == 1:
        return there[0]
    named = ", ".join(there)
    got = f"got {variant!r}" if variant else "none was named"
    raise ScanError(f"`variant` must be one that {measure!r} has here ({named}), {got}.")
