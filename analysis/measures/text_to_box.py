"""Whether a head looks at the object that the answer names: weight in its box, overlap, pointing.

For examples with ``objects`` and ``boxes`` and one image. Each mention in the answer of an object
that is there counts once. Variants say which query is looked at: ``first`` predicts the first token
of the object's name, ``last`` its last token, and ``read`` is that last token itself, read back.
Names of one token have the same ``first`` and ``last``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.box_maps import (
    NAMING,
    WORDS,
    BoxMaps,
    box_maps,
    naming_queries,
    sums_by_word,
)
from analysis.measures.image_focus import needs_image_maps, writes
from analysis.measures.picked_rows import pick_rows
from analysis.vision.boxes import from_largest, hit_patches, overlaps
from analysis.vision.named_objects import has_boxes


@dataclass(frozen=True)
class _BoxMeasure(ABC):
    """What all share: where they apply, and the maps of the queries that name objects."""

    name: str
    unit: str
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        verdict = needs_image_maps(context, self.name)
        if verdict is not True:
            return verdict
        tower, tokens, keys = context.site.tower, context.tokens, context.key_tokens
        assert tokens is not None and keys is not None
        if not writes(tokens):
            return (
                f"{self.name} asks where a model looks when it names an object, and {tower} "
                "writes nothing, so it is not measured there."
            )
        examples = () if context.batch is None else context.batch.examples
        if not any(has_boxes(example) for example in examples):
            return (
                f"{self.name} needs examples of one image with `objects` and a box for each in "
                "`boxes`, and there are none, so it is not measured."
            )
        if bool(keys.box[keys.has_role("image")].isnan().all()):
            return (
                f"{self.name} needs image positions whose place is known, and those that {tower} "
                "reads have none, so it is not measured there."
            )
        return True

    def start(self, call: CallView) -> Finish:
        rows = pick_rows(call, NAMING, naming_queries(call.plan))

        def finish() -> Iterator[Score]:
            found = box_maps(call, rows)
            if not len(found.layout.pick):
                return
            for variant, value, weight, chance in self.parts(found):
                sums = [sums_by_word(call, found.layout, part) for part in (value, weight)]
                null = None if chance is None else sums_by_word(call, found.layout, chance)
                for index, word in enumerate(WORDS):
                    told = None if null is None else (null[index], sums[1][index])
                    yield Score(word + variant, sums[0][index], sums[1][index], told)

        return finish

    @abstractmethod
    def parts(self, found: BoxMaps) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        """What is added to the variant, ``[read head]`` of value and weight, and ``[read 1]``
        of the value's null, where that is not the uniform pattern."""


class BoxMass(_BoxMeasure):
    """Weight on the patches of the named object's box, 0 to 1; patches count by what it covers."""

    def parts(self, found: BoxMaps) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        yield "", found.inside, _one_each(found), None


class BoxShare(_BoxMeasure):
    """The same as a share of the weight on the image, 0 to 1: sum over sum."""

    def parts(self, found: BoxMaps) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        yield "", found.inside, found.total, None


class BoxOverlap(_BoxMeasure):
    """Intersection over union of the box and the largest patches of a map, 0 to 1.

    ``threshold=area`` takes as many patches as cover the area of the box, ``threshold=best`` as
    many as fit best. The null of both takes patches in random order: the best of many thresholds
    is above chance for any map.
    """

    def parts(self, found: BoxMaps) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        layout, one = found.layout, _one_each(found)
        order = from_largest(found.maps, layout.allowed[:, None])
        cover, area = layout.cover[:, None], layout.area[:, None]
        best, equal = overlaps(order, cover, area)
        by_chance = overlaps(layout.chance[:, None], cover, area)
        yield ",threshold=area", equal, one, by_chance[1]
        yield ",threshold=best", best, one, by_chance[0]


class PointingGame(_BoxMeasure):
    """How often the largest weight on the image lies on the named object's box, 0 to 1.

    The null is a patch drawn at random (Zhang et al., *Top-down Neural Attention by Excitation
    Backprop*, 2016, arXiv 1608.00507; their tolerance of 15 pixels is here half of a patch).
    """

    def parts(self, found: BoxMaps) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        layout = found.layout
        hits = hit_patches(layout.cover).float()
        largest = found.maps.masked_fill(~layout.allowed[:, None], -1.0).argmax(-1)
        chance = hits.sum(-1, keepdim=True) / layout.allowed.sum(-1, keepdim=True).clamp_min(1)
        yield "", hits.gather(-1, largest), _one_each(found), chance


def _one_each(found: BoxMaps) -> Tensor:
    return found.maps.new_ones(len(found.layout.pick), 1)


BOX_MASS = BoxMass("box_mass", "share")
BOX_SHARE = BoxShare("box_share", "share")
BOX_OVERLAP = BoxOverlap("box_overlap", "share")
POINTING_GAME = PointingGame("pointing_game", "share")
