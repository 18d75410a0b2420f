"""Differences by example: two runs of the same examples, resampled together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.journal import Journal
from analysis.run_files import JOURNAL
from analysis.run_folder import Run
from analysis.statistics import LEVEL, RatioSums

Key = tuple[str, int, int, str, str]
"""Tower, layer, head, measure, variant."""


@dataclass(frozen=True)
class Replicates:
    """What a run's measures would have been on resampled examples.

    Attributes:
        place: which column is whose.
        values: float ``[replicate column]``. Two runs of the same examples share the weights of a
            replicate, so theirs may be subtracted.
        n: int ``[column]``: examples that count in it.
    """

    place: dict[Key, int]
    values: NDArray[np.float64]
    n: NDArray[np.int64]


def why_no_pairs(left: Run, right: Run) -> str:
    """Empty if both runs scored the same examples and kept their scores; else why not."""
    for run in (left, right):
        if not Journal(run.path / JOURNAL).finished():
            return f"{run.path} keeps no scores of single examples"
    digests = [str(run.plan.get("data", {}).get("digest", "")) for run in (left, right)]
    if digests[0] != digests[1]:
        return "the data are not the same"
    if _examples(left) != _examples(right):
        return "not the same examples were scored"
    return ""


def _examples(run: Run) -> set[str]:
    journal = Journal(run.path / JOURNAL)
    scores = (journal.about(shard)["scores"] for shard in journal.finished())
    return {example for one in scores if one is not None for example in one["examples"]}


def replicates(run: Run, measures: Collection[str], towers: Collection[str]) -> Replicates:
    """Bootstrap replicates of some measures in some towers, read shard by shard.

    Raises:
        ValueError: a shard cannot be read.
    """
    journal = Journal(run.path / JOURNAL)
    sums, place = RatioSums.empty(0), dict[Key, int]()
    for shard in journal.finished():
        if journal.about(shard)["scores"] is None:
            continue
        arrays, about = journal.read(shard)
        scores = about["scores"]
        columns = [
            (number, (tower, int(layer), int(head), measure, variant))
            for number, (tower, layer, head, measure, variant, _) in enumerate(scores["columns"])
            if measure in measures and tower in towers
        ]
        for _, key in columns:
            place.setdefault(key, len(place))
        if len(place) > sums.n.size:
            sums.widen(len(place))
        there = [number for number, _ in columns]
        into = [place[key] for _, key in columns]
        examples = scores["examples"]
        blocks = []
        for name in ("numerator", "denominator"):
            wide = np.zeros((len(examples), len(place)))
            wide[:, into] = arrays[name][:, there]
            blocks.append(wide)
        sums.add(examples, *blocks)
    return Replicates(place, sums.replicate_values, sums.n)


def interval(differences: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """Low and high ``[column]`` of differences ``[replicate column]``; NaN where none is known."""
    low, high = np.full(differences.shape[1], np.nan), np.full(differences.shape[1], np.nan)
    known = np.isfinite(differences).any(axis=0)
    if known.any():
        tail = (1 - LEVEL) / 2
        low[known], high[known] = np.nanquantile(differences[:, known], [tail, 1 - tail], axis=0)
    return low, high
