"""Attribution patching: every head's ablation estimated from one forward and one backward.

`atp` (Nanda, 2023; Kramár et al., 2024, "AtP*", arXiv 2403.00745): with ``z'`` what an ablation
puts in the place of a head's output, ``sum (z - z') * d objective / d z`` at the intact model is
the first-order estimate of what the model loses without the head: the estimate of
`importance_EFFECT` with the same ablation, in the same sign.

Where that is next to nothing, because the model has learned its data, the variant ``curved`` of the
effect on cross entropy adds the curvature of the output's softmax: see
`analysis.importance.estimates.curvature`.

`atp_query` and `atp_key` ask the same of where a head looks: its queries (keys) replaced by their
mean over the data, values kept. They carry AtP*'s fixes for saturated softmaxes; the variants
``plain`` are the linear estimates without. Keys are replaced one position at a time and added up.
Zero ablation replaces queries and keys by zero, and so does uniform (every key alike).

`atp_graddrop` (AtP*'s answer to direct and indirect effects that cancel): the estimate is taken
once per block with the gradient going around that block; the mean of the absolute values over the
other blocks of the model. Unsigned, and one backward more per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.effects import Effect
from analysis.importance.estimates.attention_means import PASS_NAME, AttentionMeans
from analysis.importance.estimates.curvature import output_curvature
from analysis.importance.estimates.node_sums import node_sums, z_sums
from analysis.importance.estimates.objectives import Objectives, kept_settings
from analysis.importance.replacements import Replacement, mean_changes, replacement_named
from analysis.importance.score_sheet import ScoreSheet
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.progress import Progress
from analysis.scores import BatchScores
from probes.attention_call import AttentionCall
from probes.gradients import ZGradients, gradients_of
from probes.heads import Site
from probes.z_forward import ZForward, differentiating, z_forward

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

PREFIXES = ("atp", "atp_query", "atp_key")
_NODES = ("query", "query_plain", "key", "key_plain")


@dataclass
class AttributionPatching:
    """The study `atp`: one forward per batch and one backward per effect.

    Curvature takes a forward and a backward more: four passes in all, whatever the number of heads.
    The null of an estimate is the mean of the layer's other heads.

    Attributes:
        curved: whether the effect on cross entropy gets its variant ``curved``.
    """

    options: StudyOptions
    curved: bool = True
    name: str = "atp"
    objectives: Objectives = field(init=False)
    replacement: Replacement = field(init=False)
    means: AttentionMeans = field(default_factory=AttentionMeans)
    progress: Progress = field(default_factory=Progress, repr=False)

    def __post_init__(self) -> None:
        self.objectives = Objectives(self.options, self.name)
        self.replacement = replacement_named(
            self.options.ablation, draws=self.options.draws, seed=self.options.seed
        )

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read, and what stands in for outputs, queries and keys."""
        self.objectives.begin(subject, data)
        counted = self.progress.over(self.replacement.pass_name, data)
        self.replacement.begin(subject, counted)
        if self._of_attention != "zero":
            self.means.begin(subject, self.progress.over(PASS_NAME, data))

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The estimates for every head on every example of a batch."""
        self.replacement.start(subject, batch)
        gates, no_gates = blocks_to_go_around(subject) if self.options.graddrop else ([], "")
        positions = self.objectives.positions(subject, batch)
        settings = kept_settings(positions)
        forward = z_forward(subject, batch, calls=True, gates=gates, settings=settings)
        for call in (call for calls in forward.calls.values() for call in calls):
            self.replacement.on_call(call)
        if gates and len(forward.gates.paths) < 2:
            no_gates = "A model of one block has no other block that gradients could go around."
        objectives = self.objectives.of(batch, forward.output, positions)
        reading = objectives.reading
        sheet = ScoreSheet(batch, reading.counts, reading.unread)
        changes = dict(mean_changes(self.replacement, forward, list(forward.z)))
        prefixes = (*PREFIXES, "atp_graddrop") if self.options.graddrop else PREFIXES
        reasons = self.objectives.reasons(subject.towers, *prefixes)
        for effect in self.objectives.effects:
            final = effect is self.objectives.effects[-1] and not self.options.graddrop
            bends = effect.name == "cross_entropy" and self.replacement.draws == 1
            with differentiating():
                value = objectives.value(effect)
            found = gradients_of(forward, value, last=final)
            first = {s: z_sums(batch, s, found, change) for s, change in changes.items()}
            for site, sums in first.items():
                sheet.add(site, f"atp_{effect.name}", effect.unit, sums, variant=self._variant)
                why = self._attention(sheet, effect, site, found)
                if why:
                    for prefix in PREFIXES[1:]:
                        reasons[site.tower, f"{prefix}_{effect.name}"] = why
            if bends and self.curved:
                seed = self.options.seed
                more = output_curvature(subject, batch, changes, objectives, seed=seed)
                for site, values in more.items():
                    variant = f"{self._variant},curved"
                    both = first[site] + values
                    sheet.add(site, f"atp_{effect.name}", effect.unit, both, variant=variant)
            if no_gates:
                for tower in subject.towers:
                    reasons[tower, f"atp_graddrop_{effect.name}"] = no_gates
            elif self.options.graddrop:
                self._graddrop(sheet, effect, forward, value, changes)
        return sheet.scores(reasons)

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        return {}

    @property
    def _variant(self) -> str:
        return f"ablation={self.options.ablation}"

    @property
    def _of_attention(self) -> str:
        return "zero" if self.options.ablation in ("zero", "uniform") else "mean"

    def _stand_in(self, call: AttentionCall, part: str) -> Tensor:
        if self._of_attention == "zero":
            return torch.zeros(1, device=call.device)
        return self.means.of(call, part)

    def _attention(self, sheet: ScoreSheet, effect: Effect, site: Site, found: ZGradients) -> str:
        """Add the query and key columns of a site, or say why there are none."""
        sums = node_sums(sheet.batch, site, [found], self._stand_in, nodes=_NODES)
        if isinstance(sums, str):
            return sums
        variant = f"ablation={self._of_attention}"
        for node in ("query", "key"):
            measure = f"atp_{node}_{effect.name}"
            sheet.add(site, measure, effect.unit, *sums[node], variant=variant)
            plain = sums[f"{node}_plain"]
            sheet.add(site, measure, effect.unit, *plain, variant=f"{variant},plain")
        return ""

    def _graddrop(
        self,
        sheet: ScoreSheet,
        effect: Effect,
        forward: ZForward,
        value: Tensor,
        changes: Mapping[Site, Tensor],
    ) -> None:
        blocks = len(forward.gates.paths)
        total: dict[Site, Tensor] = {}
        for number in range(blocks):
            side = gradients_of(forward, value, without_block=number, last=False)
            for site, change in changes.items():
                # Going around its own block leaves a head without any gradient, so it adds 0.
                part = z_sums(sheet.batch, site, side, change).abs() / (blocks - 1)
                total[site] = total[site] + part if site in total else part
        for site, values in total.items():
            name = f"atp_graddrop_{effect.name}"
            sheet.add(site, name, effect.unit, values, variant=self._variant)


def blocks_to_go_around(subject: Subject) -> tuple[list[str], str]:
    """Paths of the blocks of all towers, or why gradients cannot go around them."""
    anatomy = subject.layout.anatomy
    sites = [site.site for site in subject.layout.sites]
    lacking = [str(site) for site in sites if site not in anatomy.blocks]
    straight = [str(site) for site, block in anatomy.blocks.items() if not block.residual]
    if lacking or straight:
        return [], (
            f"The block of {(lacking + straight)[0]} was not seen to add its attention to what "
            "entered it, so gradients cannot go around it."
        )
    return list(dict.fromkeys(anatomy.blocks[site].path for site in sites)), ""


def atp(options: StudyOptions) -> AttributionPatching:
    """Measures ``atp_EFFECT``, ``atp_query_EFFECT``, ``atp_key_EFFECT`` and, if asked for,
    ``atp_graddrop_EFFECT``."""
    return AttributionPatching(options)
