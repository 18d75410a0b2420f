"""Weight on fixed offsets: a query's own position, the one before and the one after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView, Rows
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.text_positions import key_places, needs_text_order, weight_at


@dataclass(frozen=True)
class SelfAttention:
    """Mean over queries of the weight on their own position, 0 to 1."""

    name: str = "self_attention"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        known = context.needs_positions()
        if known is True and not context.same_tower:
            return (
                f"{self.name} needs queries and keys of one sequence, and {context.site.tower} "
                "reads another, so it is not measured there."
            )
        return known

    def start(self, call: CallView) -> Finish:
        places = key_places(call, 0)
        rows = call.rows("weight on self", lambda tile: weight_at(tile, places))

        def finish() -> Iterator[Score]:
            yield Score("", *call.mean_over_queries(rows.values))

        return finish


@dataclass(frozen=True)
class PreviousToken:
    """Share of a head's weight that lies on the token just before the query, 0 to 1.

    Equals TransformerLens' ``detect_head(..., "previous_token_head")`` with ``"mul"``: the first
    token, which has none before it, counts with 0. Variant ``exclude_bos`` leaves the first key's
    column out of both sums.
    """

    name: str = "previous_token"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        places = key_places(call, 1)
        rows = call.rows("weight on previous", lambda tile: weight_at(tile, places))
        first, later = weight_by_place(call)

        def finish() -> Iterator[Score]:
            plan = call.plan
            rest = plan.sum_queries(later.values)
            yield Score("", plan.sum_queries(rows.values), plan.sum_queries(first.values) + rest)
            third = plan.of_queries("rank") > 1
            yield Score("exclude_bos", plan.sum_queries(rows.values, third), rest)

        return finish


@dataclass(frozen=True)
class NextToken:
    """Share of a head's weight that lies on the token just after the query, 0 to 1.

    The last token, which has none after it, counts with 0; where the mask is causal, all do.
    """

    name: str = "next_token"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        places = key_places(call, -1)
        rows = call.rows("weight on next", lambda tile: weight_at(tile, places))

        def finish() -> Iterator[Score]:
            yield Score("", *call.mean_over_queries(rows.values))

        return finish


def first_key(call: CallView):
    """Float ``[batch key]``: 1 at the first key of each sequence that is no padding."""
    return call.plan.memo("first key", lambda: (call.plan.key_rank == 0).float())


def weight_by_place(call: CallView) -> tuple[Rows, Rows]:
    """Each query's weight on the first key of its sequence, and on all others.

    The second is no difference: where a head puts all but 1e-8 on the first key, 1 minus that
    would be rounding of either sign.
    """
    later = call.plan.memo("later keys", lambda: (call.plan.key_rank > 0).float())
    first = call.key_product("first key", first_key(call))
    return first, call.key_product("later keys", later)


SELF_ATTENTION = SelfAttention()
PREVIOUS_TOKEN = PreviousToken()
NEXT_TOKEN = NextToken()
