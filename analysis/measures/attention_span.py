"""The distance within which nearly all of a head's weight lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.diagonals import offset_sums
from analysis.measures.displacements import squared_distance
from analysis.measures.patch_grid import needs_patches
from analysis.measures.patch_sums import patch_sums
from analysis.measures.text_positions import needs_text_order

HELD = 0.95
"""The share that a span holds, as in MoA (arXiv 2406.14909)."""

_SLACK = 1e-6
"""Sums of float32 weights that should be exactly the share may lie this far below it."""


@dataclass(frozen=True)
class AttentionSpan:
    """The smallest distance within which 95 % of a sequence's weight lies; mean over sequences.

    Variant ``tokens`` counts ``|query - key|`` over all queries of a text sequence, ``patches``
    the Euclidean distance on the grid over the patch queries of a tile, whose weight on patches
    of that tile is renormalised to 1. Of prompts, not of generated tokens.
    """

    name: str = "attention_span"
    unit: str = "tokens"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return text_or_patches(context, self.name)

    def start(self, call: CallView) -> Finish:
        if call.step:
            return lambda: ()
        text = offset_sums(call) if has_text(call) else None
        patches = patch_sums(call) if has_patches(call) else None

        def finish() -> Iterator[Score]:
            if text is not None:
                reach, known = (call.plan.sum_blocks(part) for part in token_span(text.by_distance))
                yield Score("tokens", reach, known)
            if patches is not None:
                reach, known = patches.per_example(patch_span)
                yield Score("patches", reach, known, unit="patches")

        return finish


def token_span(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 ``[... head]`` twice: the span in tokens, and 1 where there is any weight, else 0.

    Args:
        distances: ``[... head distance]``, weight at 0, 1, 2 ... tokens.
    """
    place, known = _held(distances)
    return place.double(), known.double()


def patch_span(table: Tensor) -> tuple[Tensor, Tensor]:
    """The same in patches, of weight by displacement ``[... head down across]``."""
    squared = squared_distance(table.shape, table.device)
    steps, ring = torch.unique(squared, return_inverse=True)
    rings = table.new_zeros(*table.shape[:-2], len(steps))
    rings.index_add_(-1, ring.flatten(), table.flatten(-2))
    place, known = _held(rings)
    return steps.double().sqrt()[place], known.double()


def text_or_patches(context: MeasureContext, measure: str) -> Literal[True] | str:
    """True where token order or a patch grid can be had, else why not."""
    by_order = needs_text_order(context, measure)
    by_grid = needs_patches(context, measure)
    if by_order is True or by_grid is True:
        return True
    if context.needs_positions() is not True or not context.same_tower:
        return by_order
    return (
        f"{measure} needs text tokens or patches on a grid, and {context.site.tower} has neither, "
        "so it is not measured there."
    )


def has_text(call: CallView) -> bool:
    """Whether the order of tokens means something in a call."""
    return needs_text_order(_context(call), "") is True


def has_patches(call: CallView) -> bool:
    """Whether a call's tower has patches on a grid."""
    return needs_patches(_context(call), "") is True


def _context(call: CallView) -> MeasureContext:
    return MeasureContext(call.site, call.heads, call.plan.tokens, call.plan.key_tokens)


def _held(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first place at which the running sum has its share, and whether there is any weight."""
    running = weight.cumsum(-1)
    total = running[..., -1:]
    place = (running < (HELD - _SLACK) * total).sum(-1)
    return place, total[..., 0] > 0


ATTENTION_SPAN = AttentionSpan()
