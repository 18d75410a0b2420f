"""A small part of a scoring, run and timed, and what the whole would take by that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from headscope.batching import batches
from headscope.plan import Options
from headscope.scorer import Scorer, tell_progress
from headscope.trial_batches import Group, Trial

if TYPE_CHECKING:
    from analysis.importance.leave_one_out import Ablation
    from analysis.progress import Progress, Stage
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from probes.heads import Head
    from probes.inputs import Batch, Example

_STREAMING_BATCHES, _STUDY_BATCHES = 4, 2
"""Batches tried. The first has the most work and warms caches; the others speak for the rest."""


@dataclass
class DryRun:
    """Batches of a trial put through a scorer.

    Attributes:
        seconds: what all of the data would take, by part of the work: ``first passes``,
            ``examples``, ``sets of heads``, ``tables``.
        scores: of the batches that were tried.
        left_out: what studies do besides, of which a few batches tell nothing.
    """

    scorer: Scorer
    trial: Trial
    how: Options
    seconds: dict[str, float] = field(default_factory=dict)
    scores: list[BatchScores] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _unreadable: set[str] = field(default_factory=set)

    @property
    def groups(self) -> list[Group]:
        """Examples of the batches that are tried, the usual ones last."""
        return self.trial.tried(_STUDY_BATCHES if self.scorer.studies else _STREAMING_BATCHES)

    def begin(self, examples: Sequence[Example]) -> None:
        """What studies do before, on what is tried and as many more as donors are wanted."""
        tried = {example.id for group in self.groups for example in group}
        lacking = max(self.how.draws + 1 - len(tried), 0)
        more = [example for example in examples if example.id not in tried][:lacking]
        clock = _Clock()
        with clock.running():
            self.scorer.begin(self._data([*self.groups, more]), self._progress(clock))
        self.seconds["first passes"] = clock.whole

    def score(self) -> None:
        """The batches themselves."""
        each = []
        for group in self.groups:
            started = time.monotonic()
            for batch in self._data([group])():
                self.scores += self.scorer.score_readable(batch, self._skip)
            each.append(time.monotonic() - started)
        first, *rest = each
        usual = sum(rest) / len(rest) if rest else first
        self.seconds["examples"] = first + usual * max(self.trial.batches - 1, 0)

    def finish(self, tally: Tally) -> None:
        """What studies do at the end: of sets of heads a few, all else on a batch."""
        from analysis.importance.leave_one_out import Ablation

        clock = _Clock()
        for study in self.scorer.studies:
            if isinstance(study, Ablation):
                self.seconds["sets of heads"] = self.seconds.get("sets of heads", 0.0)
                self.seconds["sets of heads"] += self._sets(study)
                continue
            tell_progress(study, self._progress(clock))
            rehearse = getattr(study, "rehearse", None)
            with clock.running():
                subject, data = self.scorer.subject, self._data(self.groups[-1:])
                if rehearse is None:
                    study.finish(subject, data, tally)
                else:
                    self.left_out.append(rehearse(subject, data, round(self.trial.examples)))
        with clock.running():
            self.scorer.with_lines(tally.heads(), "")
        self.seconds["tables"] = clock.whole

    def _sets(self, study: Ablation) -> float:
        """`analysis.importance.confirmation`: passes over halves of the data, and sets in them."""
        from analysis.importance.confirmation import can_be_confirmed, effort
        from analysis.importance.set_effects import head_counts

        heads = sum(head_counts(self.scorer.subject).values())
        if study.shape != "leave_one_out" or not can_be_confirmed(study) or heads < 2:
            return 0.0
        needed, again = effort(heads), self.trial.regrouped(self.how.batch_size)
        groups, total = again.tried(_STUDY_BATCHES), 0.0
        for half in (0, 1):
            each = [
                needed.passes[half] * one_pass + needed.sets[half] * one_set
                for group in groups
                for one_pass, one_set in self._timed_sets(study, group, half)
            ]
            if each:
                total += each[0] + each[-1] * max(again.with_half(half, self.how.seed) - 1, 0)
        return total

    def _timed_sets(
        self, study: Ablation, group: Group, half: int
    ) -> Iterator[tuple[float, float]]:
        """Seconds of an intact pass over half a batch, and of a set of heads in it; if there is."""
        from analysis.importance.confirmation import of_half
        from analysis.importance.readings import ReadingError
        from analysis.importance.set_effects import effects_of_sets
        from analysis.statistics import half_of

        subject, seed = self.scorer.subject, self.how.seed
        mine = [e for e in group if half_of(e.id, seed) == half and e.id not in self._unreadable]
        if not mine:
            return
        data, counts = of_half(subject, self._data([group]), half, seed)
        sets, seconds = self._some_sets(), []
        for some in (sets[:1], sets):  # the first set of a batch finds out what it need not run
            started = time.monotonic()
            try:
                effects_of_sets(subject, data, some, study, only=counts, seed=seed)
            except ReadingError as error:
                if error.example_id is None or error.example_id in self._unreadable:
                    raise
                self._unreadable.add(error.example_id)
                yield from self._timed_sets(study, group, half)
                return
            seconds.append(time.monotonic() - started)
        one_set = max(seconds[1] - seconds[0], 0.0) / (len(sets) - 1)
        yield max(seconds[0] - one_set, 0.0), one_set

    def _some_sets(self) -> list[list[Head]]:
        """Random sets of the sizes that are tried."""
        from analysis.importance.confirmation import GREEDY_HEADS
        from analysis.importance.set_effects import head_counts
        from probes.heads import Head

        every = [
            Head(site.tower, site.layer, head)
            for site, heads in head_counts(self.scorer.subject).items()
            for head in range(heads)
        ]
        draw = np.random.default_rng(self.how.seed)
        sizes = [min(size, len(every)) for size in range(1, GREEDY_HEADS + 1)]
        return [[every[i] for i in draw.permutation(len(every))[:size]] for size in sizes]

    def _progress(self, clock: _Clock) -> Progress:
        from analysis.progress import Progress

        return Progress(clock.hear, round(self.trial.examples))

    def _data(self, groups: Sequence[Group]) -> Callable[[], Iterator[Batch]]:
        def given() -> Iterator[Batch]:
            for group in groups:
                readable = [example for example in group if example.id not in self._unreadable]
                yield from batches(self.scorer.subject, readable, self.how.batch_size, _ignored)

        return given

    def _skip(self, example: Example, reason: str) -> None:
        self._unreadable.add(example.id)


@dataclass
class _Clock:
    """Seconds of some work, and of the whole of it by the totals of its stages."""

    seconds: float = 0.0
    stages: list[Stage] = field(default_factory=list)

    def hear(self, stage: Stage) -> None:
        if stage not in self.stages:
            self.stages.append(stage)

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started

    @property
    def whole(self) -> float:
        known = [stage for stage in self.stages if stage.total and stage.done]
        return self.seconds + sum(s.seconds * (s.total / s.done - 1) for s in known if s.total)


def _ignored(example: Example, reason: str) -> None:
    """What cannot be used takes no time."""
