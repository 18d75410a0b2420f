"""What groups of answer tokens depend on, piece by piece: by hiding pieces, and by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.answer_score import AnswerTokens
from analysis.vision.occlusion import Blocks
from analysis.vision.saliency_maps import Group
from analysis.vision.saliency_sources import Source, occlusion_drops, tokens_of_row
from analysis.vision.source_gradients import source_gradients
from probes.written_text import continued

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

OCCLUSION = "occlusion"


def saliencies(
    subject: Subject,
    batch: Batch,
    tokens: AnswerTokens,
    groups: Sequence[Group],
    source: Source,
    blocks: Sequence[Blocks],
    written: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """For each group float ``[piece]`` by kind of saliency.

    ``gradient_norm``, ``gradient_input``, for a source that is read by another tower
    ``output_gradient_norm``, and ``occlusion`` where pieces can be hidden.

    Args:
        blocks: of each example of the batch.
        written: long ``[example token]``: answers that the model wrote, where the examples' own are
            not the ones to be explained.
    """
    found = _by_gradient(subject, batch, tokens, groups, source, blocks)
    for row in range(batch.size):

        def prepare(copies: Sequence[Example], row: int = row) -> Batch:
            made = subject.prepare(examples=copies, answers=written is None)
            if written is None:
                return made
            return continued(subject, made, written[row].expand(len(copies), -1))

        drops = occlusion_drops(subject, batch, row, source, blocks[row], prepare)
        if drops is None:
            continue
        own = tokens_of_row(tokens, row).tolist()
        for group, kinds in zip(groups, found, strict=True):
            if group.row == row:
                mine = [own.index(token) for token in group.tokens.tolist()]
                kinds[OCCLUSION] = drops[:, mine].sum(-1)
    return found


def _by_gradient(
    subject: Subject,
    batch: Batch,
    tokens: AnswerTokens,
    groups: Sequence[Group],
    source: Source,
    blocks: Sequence[Blocks],
) -> list[dict[str, Tensor]]:
    """Gradient saliency of each group; the k-th groups of all examples share a backward."""
    number = []
    seen: dict[int, int] = {}
    for group in groups:
        number.append(seen.get(group.row, 0))
        seen[group.row] = number[-1] + 1
    together = []
    for k in range(max(number) + 1):
        chosen = torch.zeros(len(tokens.example), dtype=torch.bool)
        for group, own in zip(groups, number, strict=True):
            if own == k:
                chosen[group.tokens] = True
        together.append(chosen)
    found = source_gradients(subject, batch, tokens, together, source.tower, output=source.cross)
    kinds = {"gradient_norm": found.norm, "gradient_input": found.times_input}
    if found.output_norm is not None:
        kinds["output_gradient_norm"] = found.output_norm
    return [
        {
            name: blocks[group.row].summed(values[own, blocks[group.row].positions])
            for name, values in kinds.items()
        }
        for group, own in zip(groups, number, strict=True)
    ]
