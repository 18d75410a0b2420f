"""Weight that all queries put on the same keys: vertical stripes of the pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.focus import column_squares


@dataclass(frozen=True)
class Stripe:
    """Share of the weight that lies on a few keys whoever asks, beyond an even share, 0 to 1.

    ``1/n sum_k max(0, c_k - e_k) c_k^2 / (s_k r_k)`` with ``c_k = sum_q A_qk`` what a key
    receives, ``e_k`` what it would receive of uniform rows, ``s_k = sum_q A_qk^2``, ``r_k`` the
    number of queries that may read it and n the number of queries. The first factor is weight
    beyond chance; the second, from ``1 / r_k`` for a key that one query alone reads to 1 for one
    that all read alike, is how evenly its readers give it. Mean over sequences, of prompts.
    """

    name: str = "stripe"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        if call.step:
            return lambda: ()
        plan = call.plan
        received = call.column_product("received", lambda tile: None)
        squares = call.columns("squares", column_squares)

        def finish() -> Iterator[Score]:
            even = call.uniform.column_product("received", lambda tile: None)
            columns = (received.values, squares.values, even.values, call.reader_counts[:, None])
            given, square, chance, readers = (plan.columns_by_block(part) for part in columns)
            alike = given.square() / (square * readers).clamp_min(1e-30)
            weight = (given - chance).clamp_min(0) * alike.clamp_max(1)
            total = weight.sum(-1) / plan.queries_by_block.clamp_min(1)[:, None]
            yield Score("", plan.sum_blocks(total), plan.count_blocks())

        return finish


STRIPE = Stripe()
