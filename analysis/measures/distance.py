"""How far back, in tokens, a head looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView, Rows
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.text_positions import distance_tokens, needs_text_order


def _distances(call: CallView) -> Rows:
    return call.pair_product("distance", lambda tile: distance_tokens(call, tile))


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
        rows = _distances(call)

        def finish() -> Iterator[Score]:
            yield Score("", *call.mean_over_queries(rows.values))

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
        rows = _distances(call)

        def finish() -> Iterator[Score]:
            expected = call.plan.sum_queries(_distances(call.uniform).values)
            yield Score("", call.plan.sum_queries(rows.values), expected)

        return finish


ATTENTION_DISTANCE = AttentionDistance()
ATTENTION_DISTANCE_RATIO = AttentionDistanceRatio()
