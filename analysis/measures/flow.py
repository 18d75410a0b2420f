"""Where weight flows between modalities, and between the text on either side of the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.part_masses import (
    IMAGE,
    OUTPUT,
    SIDES,
    PartMasses,
    needs_text_and_image,
    part_masses,
)

_KINDS_WITHOUT_FIRST = ("template", "own")


@dataclass(frozen=True)
class ModalityFlow:
    """Mean weight that one part of a prompt puts on another, 0 to 1.

    Variants in capitals are the blocks of the stages of DyVTE (Wu et al., 2024, arXiv 2411.19628;
    the exact statistic is not published, this one is ours): ``T->V``, ``T->T``, ``V->V``, ``V->T``
    with T all text that may read an image and V the image. The others ask finer: queries
    ``output`` (each position that predicts a token of the output) and ``after`` (prompt text behind
    the image), keys ``image``, ``before``, ``between``, ``after`` (prompt text by its side of the
    image) and ``output``. Over the keys the variants of one kind of query sum to 1; an example
    without text on a side of its image does not count for that side.
    """

    name: str = "modality_flow"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_and_image(context, self.name)

    def start(self, call: CallView) -> Finish:
        masses = part_masses(call)

        def finish() -> Iterator[Score]:
            text = [*masses.text(), OUTPUT]
            sides = {side: masses.text(sides=[side]) for side in SIDES}
            parts = {"image": [IMAGE], **sides, "output": [OUTPUT]}
            asked = [("T->V", "text", [IMAGE]), ("T->T", "text", text)]
            asked += [("V->V", "image", [IMAGE]), ("V->T", "image", text)]
            for queries in ("output", "after"):
                asked += [(f"{queries}->{key}", queries, found) for key, found in parts.items()]
            for variant, queries, pieces in asked:
                count = masses.queries(queries) * _has(masses, queries, pieces)
                if bool((count > 0).any()):
                    yield Score(variant, masses.mass(queries, pieces) * (count > 0), count)

        return finish


@dataclass(frozen=True)
class TextShift:
    """Share of the weight on prompt text that lies on text behind the image, 0 to 1.

    Queries are those that decide what is said (`PromptParts.telling`). Wings (Zhang et al., NeurIPS
    2024, arXiv 2406.03496) finds that models that forget text-only skills shift attention from the
    text before the image to the text behind it. The paper compares the two curves over layers
    (`analysis.vision.depth` does so); this ratio per head is ours. Variant ``no_bos`` leaves BOS
    (or the first key where there is none) out of the text before.
    """

    name: str = "text_shift"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_and_image(context, self.name)

    def start(self, call: CallView) -> Finish:
        masses = part_masses(call)

        def finish() -> Iterator[Score]:
            for variant, kinds in (("", None), ("no_bos", _KINDS_WITHOUT_FIRST)):
                given = {} if kinds is None else {"kinds": kinds}
                before = masses.text(sides=["before"], **given)
                after = masses.text(sides=["after"], **given)
                known = (masses.pairs("telling", before) > 0) & (masses.pairs("telling", after) > 0)
                behind = masses.mass("telling", after) * known
                both = masses.mass("telling", [*before, *after]) * known
                if bool(known.any()):
                    yield Score(variant, behind, both)

        return finish


def _has(masses: PartMasses, queries: str, pieces: list[str]) -> Tensor:
    """Bool ``[example 1]``: examples that have such keys for these queries to read.

    The first token of an output has none of it before it, and counts all the same.
    """
    if queries == "output" and pieces == [OUTPUT]:
        return torch.ones_like(masses.queries(queries), dtype=torch.bool)
    return masses.pairs(queries, pieces) > 0


MODALITY_FLOW = ModalityFlow()
TEXT_SHIFT = TextShift()
