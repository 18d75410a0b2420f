"""How far away what a head reads matters to the loss: MoA's influence, by distance.

The influence of a pair is by how much the objective changes if the head's weight on it is removed
and its row scaled up again (`analysis.importance.estimates.entry_removal`). Its absolute value
summed over pairs is `influence_EFFECT`; its spread over distances is a curve of that name; the
distance that holds 95 % of it is `influence_span_EFFECT`, the *loss-weighted* span beside
`attention_span`. A head may look far at what does not matter, and then its two spans differ.

Where tokens have an order, distance is ``|query - key|`` in tokens; between patches of one tile it
is Euclidean, in patches. The null is a head whose influence lies evenly over all pairs that each
query may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analysis.importance.effects import Effect
from analysis.importance.estimates.influence_sums import InfluenceSums, influence_sums
from analysis.importance.estimates.objectives import Objectives, kept_settings
from analysis.importance.score_sheet import ScoreSheet
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.measures.attention_span import patch_span, token_span
from analysis.measures.distance_profile import AXIS, by_bin
from analysis.plan_cache import PlanCache
from analysis.progress import Progress
from analysis.scores import BatchScores, Curve
from probes.gradients import gradients_of
from probes.heads import Site
from probes.z_forward import differentiating, z_forward

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class Influence:
    """The study `influence`: one forward per batch and one backward per effect."""

    options: StudyOptions
    name: str = "influence"
    objectives: Objectives = field(init=False)
    progress: Progress = field(default_factory=Progress, repr=False)

    def __post_init__(self) -> None:
        self.objectives = Objectives(self.options, self.name)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read."""
        self.objectives.begin(subject, data)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The influence of every head on every example of a batch, and how far it reaches."""
        positions = self.objectives.positions(subject, batch)
        settings = kept_settings(positions)
        forward = z_forward(subject, batch, calls=True, settings=settings)
        objectives = self.objectives.of(batch, forward.output, positions)
        reading = objectives.reading
        sheet = ScoreSheet(batch, reading.counts, reading.unread)
        reasons = self.objectives.reasons(subject.towers, "influence", "influence_span")
        curves: dict[tuple[str, int, str], Curve] = {}
        effects, plans = self.objectives.effects, PlanCache(batch.tokens, batch.size)
        for effect in effects:
            with differentiating():
                value = objectives.value(effect)
            gradients = gradients_of(forward, value, last=effect is effects[-1])
            for site in forward.z:
                if site in gradients.unused or reading.unread(site.tower):
                    why = reading.unread(site.tower) or (
                        f"No gradient comes from {site}, so nothing that it reads has influence."
                    )
                    for kind in ("influence", "influence_span"):
                        reasons.setdefault((site.tower, f"{kind}_{effect.name}"), why)
                    continue
                sums = influence_sums(batch, site, gradients, plans)
                sheet.add(site, f"influence_{effect.name}", effect.unit, sums.total)
                if sums.why:
                    reasons[site.tower, f"influence_span_{effect.name}"] = sums.why
                _add_spans(sheet, effect, site, sums)
                curve = _curve(effect, site, sums)
                if curve is not None:
                    curves[curve.key] = curve
        scores = sheet.scores(reasons)
        scores.curves.update(curves)
        return scores

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """No tables: the profiles are curves of the run."""
        return {}


def _add_spans(sheet: ScoreSheet, effect: Effect, site: Site, sums: InfluenceSums) -> None:
    spans = {
        "tokens": (sums.by_distance, token_span),
        "patches": (sums.by_displacement, patch_span),
    }
    for variant, (found, span) in spans.items():
        if found is not None:
            (reach, counts), (even, _) = span(found.values), span(found.null)
            # A head has no span where it has no influence, such as on patches behind the last
            # layer that a class token reads, and an example none without a pair of that kind.
            if bool(counts.any()):
                null, name = even.expand_as(reach), f"influence_span_{effect.name}"
                sheet.add(site, name, variant, reach, null, variant=variant, counts=counts.cpu())


def _curve(effect: Effect, site: Site, sums: InfluenceSums) -> Curve | None:
    """The share of a layer's influence at each distance bin, of text."""
    if sums.by_distance is None:
        return None
    values, null = (
        by_bin(part.sum(0)).cpu() for part in (sums.by_distance.values, sums.by_distance.null)
    )
    whole, even = (part.sum(-1, keepdim=True) for part in (values, null))
    name = f"influence_{effect.name}"
    return Curve(site.tower, site.layer, name, AXIS, values, whole, null[0], even[0])


def influence(options: StudyOptions) -> Influence:
    """Measures ``influence_EFFECT`` and ``influence_span_EFFECT``."""
    return Influence(options)
