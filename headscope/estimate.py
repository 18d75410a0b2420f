"""What a scoring will cost, from one timed batch; nothing is written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.batching import batches
from headscope.plan import Options
from headscope.runs import read_all
from headscope.scoring import chosen_measures, new_engine, score_batch

if TYPE_CHECKING:
    from probes.subject import Subject

_COUNTED_AS = ("numerator", "denominator", "null_numerator", "null_denominator")
_SETTLED = 3
"""Batches timed: the first warms caches, the median speaks for the rest."""


@dataclass(frozen=True)
class Estimate:
    """What `headscope score --dry-run` prints.

    Attributes:
        towers: name -> layers, heads in all.
        memory_bytes: the most that this process (on a GPU: its tensors) took for the batches.
        seconds: for all examples, from the median batch. Batches come longest first, so it is
            rather too long than too short.
        journal_bytes: for all shards, before repeated columns are stored once.
    """

    model: str
    data: str
    n: int
    towers: dict[str, tuple[int, int]]
    measures: int
    columns: int
    memory_bytes: int
    seconds: float
    journal_bytes: int

    def lines(self) -> list[str]:
        """Sentences for the terminal."""
        sizes = ", ".join(
            f"{name} {layers} layers, {heads} heads"
            for name, (layers, heads) in self.towers.items()
        )
        return [
            f"{self.model} on {self.data}: {self.n} examples; {sizes}",
            f"numbers  {self.columns:,} per example, from {self.measures} measures",
            f"memory   {_size(self.memory_bytes)} at most, seen in the first batches",
            f"time     {_duration(self.seconds)}",
            f"disk     {_size(self.journal_bytes)} at most",
            "Nothing was written.",
        ]


def estimate(subject: Subject, data: str, how: Options) -> Estimate:
    """Sizes, memory and time of a scoring, after running its first batches."""
    measures = chosen_measures(how.measures)
    engine = new_engine(subject, measures)
    examples, _ = read_all(subject, data, how)
    seconds, columns, scored = [], 0, set()
    for batch in batches(subject, examples, how.batch_size, lambda example, reason: None):
        started = time.perf_counter()
        scores = score_batch(subject, engine, batch)
        seconds.append((time.perf_counter() - started) / batch.size)
        columns = max(columns, len(scores.columns))
        scored |= {column.measure for column in scores.columns}
        if len(seconds) == _SETTLED:
            break
    if not seconds:
        raise ValueError(f"None of the {len(examples)} examples of {data!r} can be prepared.")
    return Estimate(
        model=subject.name,
        data=data,
        n=len(examples),
        towers={
            name: (tower.layers, sum(tower.heads_by_layer.values()))
            for name, tower in subject.towers.items()
        },
        measures=len(scored),
        columns=columns,
        memory_bytes=_peak_memory(subject),
        seconds=sorted(seconds)[len(seconds) // 2] * len(examples),
        journal_bytes=len(examples) * columns * 8 * len(_COUNTED_AS),
    )


def _peak_memory(subject: Subject) -> int:
    import torch

    if subject.device.type == "cuda":
        return torch.cuda.max_memory_allocated(subject.device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
