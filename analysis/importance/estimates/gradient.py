"""Head importance from gradients alone: of a mask on heads (Michel et al.), and HISP.

`mask_gradient` (Michel, Levy and Neubig, 2019, "Are Sixteen Heads Really Better than One?"): with
a mask ``xi`` that multiplies each head's output, ``E_x |d objective / d xi_h|`` at ``xi = 1``,
which is ``|sum z_h * d objective / d z_h|``. The absolute value is taken per example: taken of a
batch's gradient, as some scripts do, it would depend on how examples are batched.

`hisp` (that score on queries, keys and values with a replaced input, as the benchmark of Conmy et
al., 2023, "Towards Automated Circuit Discovery", has it): the same for a mask between a head's
queries, keys, values or output and their mean over the data, ``E_x |sum (x - x') * d objective /
d x|``. Keys and values that heads share count for each head as far as it reads them.

Both are first order at the intact model: a head that is saturated or has a substitute looks
unimportant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from analysis.importance.effects import Effect
from analysis.importance.estimates.attention_means import PASS_NAME, AttentionMeans
from analysis.importance.estimates.node_sums import node_sums, z_sums
from analysis.importance.estimates.objectives import Objectives, kept_settings
from analysis.importance.score_sheet import ScoreSheet
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

HISP_NODES = {"query": "query_plain", "key": "key_plain", "value": "value"}
_SMALLEST_NORM = 1e-20


@dataclass
class MaskGradient:
    """The study `gradient`: one forward and two backward passes per batch and effect.

    Values are in units of the effect per read, and never negative. The second backward is for the
    null: the same for a shuffled target, where there are targets.
    """

    options: StudyOptions
    name: str = "gradient"
    objectives: Objectives = field(init=False)
    means: AttentionMeans = field(default_factory=AttentionMeans)
    progress: Progress = field(default_factory=Progress, repr=False)

    def __post_init__(self) -> None:
        self.objectives = Objectives(self.options, self.name)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read, and the mean queries, keys, values and outputs of the data."""
        self.objectives.begin(subject, data)
        self.means.begin(subject, self.progress.over(PASS_NAME, data))

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The scores of every head on every example of a batch."""
        positions = self.objectives.positions(subject, batch)
        settings = kept_settings(positions)
        forward = z_forward(subject, batch, calls=True, settings=settings)
        objectives = self.objectives.of(batch, forward.output, positions)
        reading = objectives.reading
        sheet = ScoreSheet(batch, reading.counts, reading.unread)
        reasons = self.objectives.reasons(subject.towers, "mask_gradient", "hisp")
        for effect in self.objectives.effects:
            with differentiating():
                values = objectives.values(effect)
            final = effect is self.objectives.effects[-1]
            sides = [
                gradients_of(forward, value, last=final and value is values[-1]) for value in values
            ]
            for site in forward.z:
                self._mask(sheet, effect, site, sides)
                why = self._hisp(sheet, effect, site, sides)
                if why:
                    reasons[site.tower, f"hisp_{effect.name}"] = why
        return sheet.scores(reasons)

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """`gradient_layer_normalised`: the values of the head table divided by their layer's norm.

        See `layer_normalised`.
        """
        measures = [f"{p}_{e.name}" for p in ("mask_gradient", "hisp") for e in self._effects]
        return {"gradient_layer_normalised": layer_normalised(tally.heads().frame, measures)}

    @property
    def _effects(self) -> list[Effect]:
        return self.objectives.effects

    def _mask(self, sheet: ScoreSheet, effect: Effect, site: Site, sides: list[ZGradients]) -> None:
        found = [z_sums(sheet.batch, site, side, side.z[site]).abs() for side in sides]
        sheet.add(site, f"mask_gradient_{effect.name}", effect.unit, *_with_null(found))

    def _hisp(self, sheet: ScoreSheet, effect: Effect, site: Site, sides: list[ZGradients]) -> str:
        measure = f"hisp_{effect.name}"
        mean = self.means.of_z(site, sides[0].z[site])
        change = sides[0].z[site].float() - mean
        found = [z_sums(sheet.batch, site, side, change).abs() for side in sides]
        sheet.add(site, measure, effect.unit, *_with_null(found), variant="z")
        sums = node_sums(sheet.batch, site, sides, self.means.of)
        if isinstance(sums, str):
            return sums
        for node, source in HISP_NODES.items():
            both = _with_null([part.abs() for part in sums[source]])
            sheet.add(site, measure, effect.unit, *both, variant=node)
        return ""


def _with_null(sides: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The values, and those of the shuffled target where there is one."""
    return sides[0], sides[1] if len(sides) > 1 else None


def layer_normalised(heads: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """Lines of a head table, each value divided by the L2 norm of its layer's values.

    The norm is that of the means over all examples, taken over everything that a measure has in a
    layer (the heads of `mask_gradient`; the heads and nodes of `hisp`), as the scripts do that
    heads are usually pruned with. Intervals and nulls are divided by the same norm, whose own
    spread is left out. Values of different layers cannot be compared any more. The variant says
    ``layer_normalised``.
    """
    frame = heads[heads["measure"].isin(measures)].copy()
    layer = frame.groupby(["tower", "layer", "measure"], sort=False)["value"]
    norm = layer.transform(lambda values: float((values**2).sum()) ** 0.5)
    for column in ("value", "ci_low", "ci_high", "null_low", "null_high"):
        frame[column] = frame[column] / norm.clip(lower=_SMALLEST_NORM)
    named = frame["variant"].where(frame["variant"] == "", "," + frame["variant"])
    frame["variant"] = "layer_normalised" + named
    frame["unit"] = "share of the layer's norm"
    return frame.reset_index(drop=True)


def gradient(options: StudyOptions) -> MaskGradient:
    """Measures ``mask_gradient_EFFECT`` and ``hisp_EFFECT``."""
    return MaskGradient(options)
