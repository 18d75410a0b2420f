"""Which heads work harder on one kind of input than on another, and does it matter that they do.

A transfer of the functional scan of experts (fTRI, arXiv 2502.11096) to heads: compare each head's
activity on inputs that call for a behaviour and on controls, then take the heads that differ most
away together and see whether the behaviour suffers more than from as many random heads of the same
layers. Heads that are taken away are chosen on one half of the examples and judged on the other, so
that a lucky head does not confirm itself. The two sets should differ in nothing but the behaviour:
templates with one slot, compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from analysis.importance.behaviours.activity import HeadValues, head_activity
from analysis.importance.behaviours.places import Where, usual_places
from analysis.importance.scans.compared import agreement_of_halves, compared
from analysis.importance.scans.confirmation import (
    Progress,
    begun,
    chosen,
    confirmation,
    refuse_few_to_judge,
)
from analysis.importance.scans.measured import measured, on_same_heads
from analysis.importance.scans.options import ACTIVITY, ScanError, ScanOptions
from analysis.importance.scans.result import Scan
from analysis.importance.scans.two_sets import SETS, Halved, Inputs, as_data
from analysis.importance.set_effects import output_effect
from analysis.importance.study import StudyOptions
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.inputs import Batch
    from probes.subject import Subject

_PAD = ROLES.index("pad")


def scan(
    subject: Subject,
    behaviour: Inputs,
    control: Inputs,
    how: ScanOptions | None = None,
    options: StudyOptions | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Compare every head on two sets of inputs, and confirm the difference by ablation.

    Args:
        behaviour, control: batches, or a function that gives them anew; at least 2 examples each,
            4 where a difference is to be confirmed.
        how: what is compared, and how many heads are taken away.
        options: of the ablation: effect, what stands in (by default the mean over both sets),
            label, draws, and the seed of all that is drawn.
        progress: called while sets of heads are judged, with examples done and examples in all,
            each counted once per set.

    Raises:
        ScanError: an unknown tower; a measure, pairs or an ablation that cannot be had here.
        EffectError: an effect that this model or data cannot give.
        ValueError: too few examples, or what an effect or measure needs is missing.
    """
    how, options = how or ScanOptions(), options or StudyOptions()
    towers = scanned_towers(subject, how)
    given = zip(SETS, (behaviour, control), strict=True)
    data = {name: as_data(inputs, name) for name, inputs in given}
    first = [_first(data[name], name) for name in SETS]
    if how.measure == ACTIVITY:
        how = replace(how, where=_where(first, towers, how))
    ablation = begun(subject, data, options) if how.top else None
    lengths = {name: _Lengths(towers[0]) for name in SETS}
    one, other = on_same_heads(
        *(_values(subject, lengths[name].watch(data[name]), how, towers) for name in SETS)
    )
    sets = Halved.of(one.examples, other.examples, how.paired, options.seed)
    heads, permuted = compared(one, other, sets, how, options.seed)
    lines, there_are, effect = heads.iloc[:0, :0], {}, None
    if ablation is not None:
        refuse_few_to_judge(sets)
        effect = output_effect(ablation)
        ranked = chosen(heads, how)
        lines, there_are = confirmation(
            subject, data, sets, ranked, ablation, how, options.seed, progress
        )
    return Scan(
        heads=heads,
        confirmation=lines,
        how=how,
        towers=tuple(towers),
        unit=one.unit,
        effect=effect.name if effect else "",
        effect_unit=effect.unit if effect else "",
        examples=(len(one.examples), len(other.examples)),
        splits=permuted.splits,
        null_largest=permuted.null_largest if np.isfinite(permuted.null_largest) else None,
        reliability=agreement_of_halves(heads),
        lengths=_mean_lengths(*(lengths[name].seen for name in SETS)),
        there_are=there_are,
    )


def scanned_towers(subject: Subject, how: ScanOptions) -> list[str]:
    """The towers that were asked for; by default the one that writes, where there is one.

    Raises:
        ScanError: the model has no such tower.
    """
    unknown = [name for name in how.towers if name not in subject.towers]
    if unknown:
        raise ScanError(
            f"`towers` must be among {', '.join(subject.towers) or 'none'}, got {unknown[0]!r}. "
            "Run `headscope inspect MODEL` to list them."
        )
    if how.towers:
        return list(dict.fromkeys(how.towers))
    for name in ("language", "decoder"):
        if name in subject.towers:
            return [name]
    return list(subject.towers)


def _where(batches: Sequence[Batch], towers: Sequence[str], how: ScanOptions) -> Where:
    """Which positions stand for an example: what was asked for, or what is usual."""
    usual: list[Where] = [usual_places(batches, tower) for tower in towers]
    of_text: list[Where] = [place for place in usual if place != "all"]
    if not how.where:
        return of_text[0] if of_text else "all"
    if how.where != "all" and not of_text:
        raise ScanError(
            f"`where` must be all where no tower reads text ({', '.join(towers)}), got "
            f"{how.where!r}. Leave it out."
        )
    return how.where


def _first(data: Data, name: str) -> Batch:
    found = next(iter(data()), None)
    if found is None:
        raise ValueError(f"Both sets must hold examples, the {name} is empty. Give some.")
    return found


def _values(subject: Subject, data: Data, how: ScanOptions, towers: Sequence[str]) -> HeadValues:
    if how.measure == ACTIVITY:
        assert how.where
        return head_activity(subject, data, towers, how.where, how.last)
    return measured(subject, data, how.measure, how.variant, towers)


@dataclass
class _Lengths:
    """How long the examples are that pass by, in positions of a tower."""

    tower: str
    seen: list[int] = field(default_factory=list)

    def watch(self, data: Data) -> Data:
        def passing() -> Iterator[Batch]:
            for batch in data():
                if self.tower in batch.tokens:
                    tokens = batch.tokens[self.tower]
                    real = (tokens.role != _PAD) & (tokens.example >= 0)
                    count = torch.bincount(tokens.example[real], minlength=batch.size)
                    self.seen += count.tolist()
                yield batch

        return passing


def _mean_lengths(one: Sequence[int], other: Sequence[int]) -> tuple[float, float] | None:
    return (float(np.mean(one)), float(np.mean(other))) if one and other else None
