"""What a scoring will cost, from a few timed batches; nothing is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.precision import duration
from headscope.batching import batches
from headscope.dry_run import DryRun
from headscope.plan import Options
from headscope.runs import read_all
from headscope.scorer import Scorer
from headscope.trial_batches import Trial

if TYPE_CHECKING:
    from probes.subject import Subject

_COUNTED_AS = ("numerator", "denominator", "null_numerator", "null_denominator")


@dataclass(frozen=True)
class Estimate:
    """What `headscope score --dry-run` prints.

    Attributes:
        n: examples that can be scored; an estimate where there are too many to try each.
        towers: name -> layers, heads in all.
        memory_bytes: the most that this process (on a GPU: its tensors) took for the batches.
        seconds: for all examples, the model loaded.
        parts: the same by what it is spent on: ``first passes`` (means and the like), ``examples``,
            ``sets of heads``, ``tables``.
        journal_bytes: for all shards, before repeated columns are stored once.
        left_out: what takes time and memory, too, and cannot be told from a few batches.
    """

    model: str
    data: str
    n: int
    towers: dict[str, tuple[int, int]]
    measures: int
    columns: int
    memory_bytes: int
    seconds: float
    parts: dict[str, float]
    journal_bytes: int
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Sentences for the terminal."""
        sizes = ", ".join(
            f"{name} {layers} layers, {heads} heads"
            for name, (layers, heads) in self.towers.items()
        )
        long = [
            f"{name} {duration(seconds)}" for name, seconds in self.parts.items() if seconds > 1
        ]
        return [
            f"{self.model} on {self.data}: {self.n} examples; {sizes}",
            f"numbers  {self.columns:,} per example, from {self.measures} measures",
            f"memory   {_size(self.memory_bytes)} at most, seen in the first batches",
            f"time     about {duration(self.seconds)}"
            + (f": {', '.join(long)}" if len(long) > 1 else ""),
            f"disk     {_size(self.journal_bytes)} at most",
            *(f"without  {what}" for what in self.left_out),
            "Nothing was written.",
        ]


def estimate(subject: Subject, data: str, how: Options) -> Estimate:
    """Sizes, memory and time of a scoring, after running a few of its batches."""
    from analysis.tally import Tally

    scorer = Scorer.make(subject, how)
    examples, _ = read_all(subject, data, how)
    trial = Trial.of(subject, examples, how.batch_size)
    if not trial.groups:
        raise ValueError(f"None of the {len(examples)} examples of {data!r} can be prepared.")
    scorer.refuse(lambda: batches(subject, examples, how.batch_size, lambda example, reason: None))
    run = DryRun(scorer, trial, how)
    run.begin(examples)
    run.score()
    tally = Tally(replicates=how.replicates, seed=how.seed)
    for scores in run.scores:
        tally.add(scores)
    if not tally.examples:
        raise ValueError(f"None of the first examples of {data!r} has anything to be read.")
    run.finish(tally)
    columns = max(len(scores.columns) for scores in run.scores)
    n = round(trial.examples)
    return Estimate(
        model=subject.name,
        data=data,
        n=n,
        towers={
            name: (tower.layers, sum(tower.heads_by_layer.values()))
            for name, tower in subject.towers.items()
        },
        measures=len(tally.measures),
        columns=columns,
        memory_bytes=_peak_memory(subject),
        seconds=sum(run.seconds.values()),
        parts=run.seconds,
        journal_bytes=n * columns * 8 * len(_COUNTED_AS),
        left_out=tuple(run.left_out),
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
