"""What a scoring will cost, from one timed batch; nothing is written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.batching import batches, longest_first
from headscope.plan import Options
from headscope.runs import read_all
from headscope.scorer import Scorer

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.subject import Subject

_COUNTED_AS = ("numerator", "denominator", "null_numerator", "null_denominator")
_SETTLED = 3
"""Batches timed: the first warms caches, the median speaks for the rest. With studies one batch
is many forwards, and one is enough."""


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
    scorer = Scorer.make(subject, how)
    examples, _ = read_all(subject, data, how)
    seconds, columns, scored = [], 0, set()
    some = longest_first(examples)[: max(how.batch_size * _SETTLED, how.draws + 1)]

    def skip(example: Example, reason: str) -> None:
        return

    started = time.perf_counter()
    scorer.begin(lambda: batches(subject, some, how.batch_size, skip))
    first_passes = (time.perf_counter() - started) / max(len(some), 1)
    for batch in batches(subject, some, how.batch_size, skip):
        started = time.perf_counter()
        scores = scorer.score(batch)
        seconds.append((time.perf_counter() - started) / batch.size)
        columns = max(columns, len(scores.columns))
        scored |= {column.measure for column in scores.columns}
        if len(seconds) == (1 if scorer.studies else _SETTLED):
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
        seconds=(sorted(seconds)[len(seconds) // 2] * _with_sets(scorer) + first_passes)
        * len(examples),
        journal_bytes=len(examples) * columns * 8 * len(_COUNTED_AS),
    )


def _with_sets(scorer: Scorer) -> float:
    """How much longer a study of single heads takes for the sets of heads that it judges after."""
    from analysis.importance.confirmation import runs_of_sets

    if not any(study.name == "importance" for study in scorer.studies):
        return 1.0
    sites = scorer.subject.layout.sites
    heads = sum(site.heads for site in sites)
    return 1 + runs_of_sets(heads) / (heads + len(sites))


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
