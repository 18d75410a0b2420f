"""Rollout and gradient relevancy: maps over positions, and each head's share in them.

`relevancy_EFFECT` (Chefer, Gur and Wolf, 2021, "Generic Attention-model Explainability", rule for
self-attention) is ``sum (d objective / d A * A)^+`` of a head, per read; `rollout_mass` (on the
rollout of Abnar and Zuidema, 2020, "Quantifying Attention Flow in Transformers") is the share of
the rollout arriving at its layer that the head takes from other positions than the one it is at:
0 for a head that only looks at its own position, 1 for one that never does.

The variant ``sinks_masked`` takes bos, cls and register keys, and keys that draw attention
whatever the query, out of every pattern and lets the rest of a row sum to 1: sinks otherwise
dominate both. Rollout knows no values and no sign, relevancy no negative evidence: compare them
with exact effects before trusting them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.estimates.objectives import BatchObjectives, Objectives, kept_settings
from analysis.importance.estimates.read_positions import read_positions
from analysis.importance.estimates.relevancy_flow import (
    MASKED,
    PLAIN,
    VARIANTS,
    Flow,
    HeadShares,
    carry,
)
from analysis.importance.estimates.sink_keys import sink_keys
from analysis.importance.score_sheet import ScoreSheet, examples_of, per_example
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.progress import Progress
from analysis.scores import BatchScores
from probes.gradients import ZGradients, gradients_of
from probes.heads import Site
from probes.z_forward import differentiating, z_forward

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

MAPS_KEPT = 16
"""Examples whose maps a run keeps."""


@dataclass
class Relevancy:
    """The study `relevancy`: one forward per batch and one backward per effect."""

    options: StudyOptions
    name: str = "relevancy"
    objectives: Objectives = field(init=False)
    progress: Progress = field(default_factory=Progress, repr=False)

    def __post_init__(self) -> None:
        self.objectives = Objectives(self.options, self.name)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read."""
        self.objectives.begin(subject, data)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Each head's share in the maps of every example of a batch."""
        reasons = self.objectives.reasons(subject.towers, "relevancy")
        positions = self.objectives.positions(subject, batch)
        settings = kept_settings(positions)
        forward = z_forward(subject, batch, calls=True, settings=settings)
        objectives = self.objectives.of(batch, forward.output, positions)
        reading = objectives.reading
        sheet = ScoreSheet(batch, reading.counts, reading.unread)
        once = torch.ones(batch.size)
        for effect in self.objectives.effects:
            first = effect is self.objectives.effects[0]
            with differentiating():
                value = objectives.value(effect)
            gradients = gradients_of(forward, value, last=False)
            for tower in subject.towers:
                flow = flow_of(batch, tower, gradients, objectives)
                if isinstance(flow, str):
                    reasons[tower, "rollout_mass"] = flow
                for site, shares in _layers(batch, tower, gradients, flow):
                    name = f"relevancy_{effect.name}"
                    for variant in VARIANTS:
                        sums = _summed(batch, site, gradients, shares, "relevancy", variant)
                        sheet.add(site, name, effect.unit, sums, variant=variant)
                        if first and shares[0].rollout:
                            sums = _summed(batch, site, gradients, shares, "rollout", variant)
                            sheet.add(
                                site, "rollout_mass", "share", sums, variant=variant, counts=once
                            )
        return sheet.scores(reasons)

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """`relevancy_maps` of the first `MAPS_KEPT` examples; see the function of that name."""
        import pandas as pd

        frames, kept, wanted = [], 0, min(MAPS_KEPT, tally.examples)
        stage = self.progress.stage("maps", wanted)
        for batch in data():
            frame = self.maps(subject, batch)
            if not frame.empty:
                order = {example.id: number for number, example in enumerate(batch.examples)}
                frames.append(frame[frame["example"].map(order) < MAPS_KEPT - kept])
            kept += batch.size
            stage.reach(min(kept, wanted), 0)
            if kept >= MAPS_KEPT:
                break
        stage.end()
        return {"relevancy_maps": pd.concat(frames, ignore_index=True)} if frames else {}

    def maps(self, subject: Subject, batch: Batch) -> pd.DataFrame:
        """The maps of a batch by the first effect; see `relevancy_maps`."""
        import pandas as pd

        positions = self.objectives.positions(subject, batch)
        settings = kept_settings(positions)
        forward = z_forward(subject, batch, calls=True, settings=settings)
        objectives = self.objectives.of(batch, forward.output, positions)
        with differentiating():
            value = objectives.value(self.objectives.effects[0])
        gradients = gradients_of(forward, value)
        frames = []
        for tower in subject.towers:
            flow = flow_of(batch, tower, gradients, objectives)
            if isinstance(flow, str):
                continue
            for _ in _layers(batch, tower, gradients, flow):
                pass
            frames.append(_frame(batch, tower, flow))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def relevancy_maps(
    subject: Subject, batch: Batch, *, effect: str = "", label: str = ""
) -> pd.DataFrame:
    """How much each position matters to where the output is read, by rollout and by relevancy.

    Args:
        effect: what relevancy takes the gradient of: ``cross_entropy`` (default), ``probability``,
            ``logit`` or ``margin``; the sum over the example's reads.
        label: field of the examples with the class, or ``predicted``.

    Returns:
        One line per position that is no padding: example, tower, sequence, position, role, id,
        text, image, tile, row, column, and the maps ``rollout`` (sums to 1 over an example),
        ``relevancy`` (its start, 1 spread over the reads, included), and both with
        ``_sinks_masked``. A map starts where its tower is read: at the reads of a language tower,
        at the class token, else at every position that a gradient comes from, alike.

    Raises:
        ValueError: the effect has no gradient, or the output cannot be read.
    """
    study = Relevancy(StudyOptions(effects=(effect,) if effect else (), label=label))
    study.begin(subject, lambda: [batch])
    return study.maps(subject, batch)


def flow_of(
    batch: Batch, tower: str, gradients: ZGradients, objectives: BatchObjectives
) -> Flow | str:
    """A flow at the reads of a tower, or why positions of this tower cannot be followed."""
    sites = [site for site in gradients.calls if site.tower == tower]
    if not sites:
        return f"This input does not reach {tower}."
    for site in sites:
        for call in gradients.calls[site]:
            if (call.key_tower or tower) != tower:
                return f"{tower} reads positions of {call.key_tower}, and maps follow one sequence."
            known = call.query_index is not None and call.key_index is not None
            if not known or tower not in batch.tokens:
                return f"The positions of {tower} are not known in its attention calls."
    start = read_positions(batch, tower, gradients, objectives.reading)
    return start if isinstance(start, str) else Flow.starting(start)


def _layers(
    batch: Batch, tower: str, gradients: ZGradients, flow: Flow | str
) -> Iterator[tuple[Site, list[HeadShares]]]:
    """Carry a flow through a tower, last layer first."""
    sites = sorted((s for s in gradients.calls if s.tower == tower), reverse=True)
    for site in sites:
        calls = [
            (call, gradient, sink_keys(call, batch.tokens))
            for call, gradient in gradients.by_call(site)
        ]
        # A last layer that nothing reads (a vision layer behind the one that is used) is no part
        # of the way.
        way = None if isinstance(flow, str) or site in gradients.unused else flow
        yield site, carry(way, calls)


def _summed(
    batch: Batch,
    site: Site,
    gradients: ZGradients,
    shares: list[HeadShares],
    kind: str,
    variant: str,
) -> Tensor:
    """Float64 ``[example head]`` over the calls of a site."""
    total = torch.zeros(batch.size, gradients.z[site].shape[2], dtype=torch.float64)
    for call, share in zip(gradients.calls[site], shares, strict=True):
        rows = getattr(share, kind).get(variant)
        if rows is None:
            continue
        example = examples_of(batch, site, (call.batch, call.queries), call.query_index)
        total += per_example(rows.transpose(1, 2).cpu(), example, batch.size)
    return total


def _frame(batch: Batch, tower: str, flow: Flow) -> pd.DataFrame:
    frame = batch.tokens[tower].to_frame()
    for name, vectors in (("rollout", flow.rollout), ("relevancy", flow.relevancy)):
        for variant in (PLAIN, MASKED):
            column = f"{name}_{variant}" if variant else name
            frame[column] = vectors[variant][:-1].numpy()
    names = [example.id for example in batch.examples]
    frame["example"] = [names[number] for number in frame["example"]]
    frame = frame.drop(columns=["left", "top", "right", "bottom"])
    return frame[frame["role"] != "pad"].reset_index(drop=True)


def relevancy(options: StudyOptions) -> Relevancy:
    """Measures ``relevancy_EFFECT`` and ``rollout_mass``, table ``relevancy_maps``."""
    return Relevancy(options)
