"""The one fixed offset that holds most of a head's weight, and how much it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.attention_span import has_patches, has_text, text_or_patches
from analysis.measures.diagonals import OffsetSums, offset_sums
from analysis.measures.displacements import steps
from analysis.measures.patch_sums import PatchSums, patch_sums

_LEAST = 1e-12


@dataclass(frozen=True)
class BestOffset:
    """Largest share of a sequence's weight on keys at one fixed offset from their query.

    Variant ``tokens``: offsets in a text sequence; ``tokens_back`` is the offset, so many tokens
    before the query (negative: after it). Variant ``patches``: displacements on the patch grid,
    weight on patches of the same tile renormalised to 1; ``rows_down`` and ``columns_right`` say
    where. Queries that have no key there count with 0. Mean over sequences or tiles, of prompts.
    """

    name: str = "best_offset"
    unit: str = "share"
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
                yield from _of_tokens(call, text)
            if patches is not None:
                yield from _of_patches(patches)

        return finish


def _of_tokens(call: CallView, sums: OffsetSums) -> Iterator[Score]:
    plan = call.plan
    best, place = sums.values.max(-1)
    known = (best > 0).double()
    share = best / plan.queries_by_block.clamp_min(1)[:, None]
    count = plan.sum_blocks(known)
    yield Score("tokens", plan.sum_blocks(share), count)
    yield Score("tokens_back", plan.sum_blocks((place - sums.zero) * known), count, unit="tokens")


def _of_patches(sums: PatchSums) -> Iterator[Score]:
    share, down, across, count = sums.per_example(_best)
    yield Score("patches", share, count)
    yield Score("rows_down", down, count, unit="patches")
    yield Score("columns_right", across, count, unit="patches")


def _best(table: Tensor) -> tuple[Tensor, ...]:
    """Share of the weight ``[... head down across]``, rows, columns, and 1 where there is any."""
    best, place = table.flatten(-2).max(-1)
    down, across = (
        step.expand(table.shape[-2:]).flatten()[place] for step in steps(table.shape, table.device)
    )
    known = (best > 0).double()
    total = table.sum((-2, -1)).clamp_min(_LEAST)
    return best / total, down * known, across * known, known


BEST_OFFSET = BestOffset()
