"""What a model loses without each head, exactly: leave one out, keep one, layer off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.importance.comparison import Changes, Comparison
from analysis.importance.effects import Effect
from analysis.importance.readings import ReadingError
from analysis.importance.replaced_rows import ReplacedRows, replaced_by
from analysis.importance.replacements import Replacement, replacement_named
from analysis.importance.study import StudyOptions, chosen_effects, refuse_unreadable
from analysis.importance.targets import Data, Reader
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.touched import Place, Touched
from probes.heads import Head, Site
from probes.replay import RecordedForward, record

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

Shape = Literal["leave_one_out", "keep_one"]
_NAMES = {"leave_one_out": "importance", "keep_one": "keep_one"}


@dataclass
class Ablation:
    """The study of what every head alone is worth.

    Attributes:
        shape: ``leave_one_out`` takes one head away at a time. ``keep_one`` takes all others of
            its layer away: what is lost when only this head works. A low value means that the
            head does the layer's job alone.
    """

    options: StudyOptions
    shape: Shape = "leave_one_out"
    effects: list[Effect] = field(default_factory=list)
    replacement: Replacement | None = None
    reader: Reader | None = None
    progress: Progress = field(default_factory=Progress, repr=False)

    @property
    def name(self) -> str:
        return _NAMES[self.shape]

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read, and what stands in for a head."""
        self.reader = Reader(subject, data, label=self.options.label, seed=self.options.seed)
        self.effects = chosen_effects(self.options, self.reader)
        for effect in self.effects:
            refuse_unreadable(effect, self.reader)
        self.replacement = replacement_named(
            self.options.ablation, draws=self.options.draws, seed=self.options.seed
        )
        counted = self.progress.over(self.replacement.pass_name, data)
        self.replacement.begin(subject, counted)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The effect of every head on every example of a batch."""
        recorded, comparison = self.record(subject, batch)
        columns: list[Column] = []
        sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        reasons: dict[tuple[str, str], str] = {}
        sites = []
        for site in recorded.z:
            why = self._out_of_reach(comparison, site)
            names = (f"{self.name}_{effect.name}" for effect in self.effects)
            reasons |= {(site.tower, name): why for name in names if why}
            sites += [] if why else [site]
        touched: dict[Place, Touched] = {}
        for site, (total, rows) in self._totals(comparison, recorded, sites).items():
            for name, unit, changes, counts in self._of_site(comparison, recorded, site, total):
                variant = f"ablation={self.options.ablation}"
                heads = range(recorded.z[site].shape[2])
                columns += [Column(site.tower, site.layer, h, name, variant, unit) for h in heads]
                whole = name.startswith("layer_off")
                sums.append(_with_null(changes, counts, alone=not whole))
                place = (site.tower, site.layer, name, variant)
                touched[place] = self._touched(rows, whole)
        ids = tuple(example.id for example in batch.examples)
        if not columns:
            return BatchScores.nothing(ids, reasons)
        value, reads, null, null_reads = (torch.cat(part, 1) for part in zip(*sums, strict=True))
        return BatchScores(
            tuple(columns),
            value,
            reads,
            null,
            null_reads,
            examples=ids,
            reasons=reasons,
            touched=touched,
        )

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """What the highest heads are worth together, and the pruning curve of their order."""
        if self.shape != "leave_one_out":
            return {}
        from analysis.importance.confirmation import confirmation

        return confirmation(subject, data, tally, self)

    def record(self, subject: Subject, batch: Batch) -> tuple[RecordedForward, Comparison]:
        """The intact forward of a batch, and what changed outputs are compared with."""
        assert self.reader is not None and self.replacement is not None
        reading = self.reader.reading(batch)
        self.replacement.start(subject, batch)
        listens = getattr(self.replacement, "listens", False)
        recorded = record(
            subject,
            batch,
            positions=reading.positions,
            on_call=self.replacement.on_call if listens else None,
        )
        if self.options.label:
            read = reading.of(recorded.output, recorded.positions)
            reading = self.reader.predicted(reading, batch, read)
        return recorded, Comparison(self.effects, recorded, reading)

    def _out_of_reach(self, comparison: Comparison, site: Site) -> str:
        """Why heads of a layer cannot have any effect here, empty if they can."""
        assert self.replacement is not None
        why = comparison.reading.unread(site.tower)
        if not why and not self.replacement.touches(site):
            return (
                f"{self.replacement.name} finds no such queries and keys in {site.tower}, so "
                "there is nothing to take away."
            )
        return why

    def _totals(
        self, comparison: Comparison, recorded: RecordedForward, sites: Sequence[Site]
    ) -> dict[Site, tuple[list[Changes], ReplacedRows]]:
        """What changes without each set of heads of each layer, summed over draws; and in z."""
        assert self.replacement is not None
        total: dict[Site, tuple[list[Changes], ReplacedRows]] = {}
        for draw in range(self.replacement.draws):
            for site in sites:
                z = recorded.z[site]
                values = self.replacement.values(recorded, site, draw).expand(z.shape).to(z.dtype)
                sets = _sets(self.shape, z.shape[2])
                found = list(self._changes(comparison, recorded, site, sets, values))
                rows = replaced_by(self.replacement, recorded, site, values)
                if site in total:
                    before, rows_before = total[site]
                    found = [_added(a, b) for a, b in zip(before, found, strict=True)]
                    rows = rows_before + rows
                total[site] = found, rows
        return total

    def _touched(self, rows: ReplacedRows, whole: bool) -> Touched:
        if whole:
            return rows.together()
        return rows.each() if self.shape == "leave_one_out" else rows.all_others()

    def _of_site(
        self,
        comparison: Comparison,
        recorded: RecordedForward,
        site: Site,
        total: Sequence[Changes],
    ) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Measure, unit, ``[example head choice]`` and ``[example]`` reads, averaged over draws."""
        assert self.replacement is not None
        heads, draws = recorded.z[site].shape[2], self.replacement.draws
        for effect in self.effects:
            counts = comparison.reading.counts
            if effect.needs == "block":
                counts = comparison.block_counts(site)
            counts = counts * self.replacement.reached(recorded.batch, site)
            every = torch.stack([one[effect.name] for one in total], dim=1) / draws
            if not bool(torch.isfinite(every).all()):
                head = int((~torch.isfinite(every)).any(-1).any(0).nonzero()[0, 0])
                raise ReadingError(
                    f"The output must be finite without {_named(site, head)}, got NaN or infinity. "
                    "Load the model in float32, or choose `--ablation mean`."
                )
            yield f"{self.name}_{effect.name}", effect.unit, every[:, :heads], counts
            if self.shape == "leave_one_out":
                off = every[:, heads:].expand(-1, heads, -1)
                yield f"layer_off_{effect.name}", effect.unit, off, counts

    def _changes(
        self,
        comparison: Comparison,
        recorded: RecordedForward,
        site: Site,
        sets: Sequence[Sequence[int]],
        values: Tensor,
    ) -> Iterator[Changes]:
        def chosen(heads: Sequence[int]) -> tuple[list[int], Tensor]:
            return list(heads), values[:, :, list(heads)]

        outputs: Iterator[Changes] = iter([{} for _ in sets])
        if comparison.on_output:
            outputs = self._outputs(comparison, recorded, site, sets, chosen)
        for heads, change in zip(sets, outputs, strict=True):
            if comparison.on_block:
                block = recorded.block_output(site)
                if heads:
                    block = recorded.run_block(site, *chosen(heads))
                change = {**change, **comparison.block_changes(site, block)}
            yield change

    def _outputs(
        self,
        comparison: Comparison,
        recorded: RecordedForward,
        site: Site,
        sets: Sequence[Sequence[int]],
        chosen: Callable[[Sequence[int]], tuple[list[int], Tensor]],
    ) -> Iterator[Changes]:
        copies = self.options.copies
        if copies == 1 or not all(sets) or recorded.can_fold(site) is not True:
            for heads in sets:  # exact one by one, only slower
                output = recorded.run({site: chosen(heads)}) if heads else recorded.output
                yield comparison.changes(output, site.tower)
            return
        for start in range(0, len(sets), copies):
            some = [chosen(heads) for heads in sets[start : start + copies]]
            output = recorded.run_copies(site, some)
            yield from comparison.changes_of_copies(output, site.tower, len(some))


def _sets(shape: Shape, heads: int) -> list[list[int]]:
    """Which heads are taken away together: one set per head, and the whole layer at the end."""
    every = list(range(heads))
    if shape == "keep_one":
        return [[other for other in every if other != head] for head in every]
    return [[head] for head in every] + [every]


def _added(one: Changes, other: Changes) -> Changes:
    return {name: value + other[name] for name, value in one.items()}


def _with_null(
    changes: Tensor, counts: Tensor, *, alone: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numerator, denominator and the same of the null, float64 ``[example head]``.

    The null is the effect on a shuffled target where there are targets, else the mean effect of
    the other heads of the layer (none where a whole layer was taken away).
    """
    value, heads = changes[..., 0], changes.shape[1]
    denominator = counts[:, None].expand(-1, heads)
    if changes.shape[-1] > 1:
        return value, denominator, changes[..., 1], denominator
    if heads < 2 or not alone:
        return value, denominator, torch.zeros_like(value), torch.zeros_like(denominator)
    others = (value.sum(1, keepdim=True) - value) / (heads - 1)
    return value, denominator, others, denominator


def _named(site: Site, head: int) -> str:
    return str(Head(site.tower, site.layer, head))


def importance(options: StudyOptions) -> Ablation:
    """Leave one out: measure ``importance_EFFECT``; ``layer_off_EFFECT`` for the whole layer."""
    return Ablation(options)


def keep_one(options: StudyOptions) -> Ablation:
    """Keep one in the layer: measure ``keep_one_EFFECT``."""
    return Ablation(options, "keep_one")
