"""How far back, in tokens, a head looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.diagonals import OffsetSums, offset_sums
from analysis.measures.text_positions import needs_text_order


def _total_distance(call: CallView, sums: OffsetSums) -> Tensor:
    """Float64 ``[example head]``: ``sum_qk p |q - k|``."""
    weight = sums.by_distance
    total = weight @ torch.arange(weight.shape[-1], device=weight.device).double()
    return call.plan.sum_blocks(total)


@dataclass(frozen=True)
class AttentionDistance:
    """Mean over queries of ``sum_k p |q - k|``, in tokens."""

    name: str = "attention_distance"
    unit: str = "tokens"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        sums = offset_sums(call)

        def finish() -> Iterator[Score]:
            yield Score("", _total_distance(call, sums), call.plan.count_queries())

        return finish


@dataclass(frozen=True)
class AttentionDistanceRatio:
    """The same over what a head that looks at all allowed keys alike would have; 1 is as far."""

    name: str = "attention_distance_ratio"
    unit: str = "ratio"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        sums = offset_sums(call)

        def finish() -> Iterator[Score]:
            expected = _total_distance(call, offset_sums(call.uniform))
            yield Score("", _total_distance(call, sums), expected)

        return finish


ATTENTION_DISTANCE = AttentionDistance()
ATTENTION_DISTANCE_RATIO = AttentionDistanceRatio()
