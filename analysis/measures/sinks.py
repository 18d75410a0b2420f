"""Keys that receive much weight from everywhere: the first key, and the largest sink.

The sink weight of a key is ``alpha_k = sum_i A_ik / (queries that may read k)`` (Gu et al., ICLR
2025: ``sum_{i >= k} A_ik / (T - k + 1)`` for a causal model). Without a causal mask it is the mean
over all queries. Under a uniform causal pattern ``alpha_1`` is ``H_T / T`` (H_T: harmonic number),
0.074 at T = 64, so every number here goes with the null at the same T, and `sequence_length` says
what T was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView, Columns
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.offsets import first_key

EPSILONS = (0.3, 0.1, 0.2, 0.5)
"""Thresholds on alpha, that of Gu et al. first."""

_CURVE_POINTS = 256
_FEWEST_READERS = 0.5


def _needs_sequence(context: MeasureContext) -> Literal[True] | str:
    return context.needs_positions()


def _received(call: CallView) -> Columns:
    return call.column_product("received", lambda tile: None)


def _alpha(call: CallView, received: Columns) -> Tensor:
    """Float64 ``[block head key]``: sink weight of every key, 0 where nobody may read it."""
    readers = call.reader_counts[:, None]
    return call.plan.columns_by_block(received.values / readers.clamp_min(1))


def _whole(call: CallView) -> bool:
    # A step of generation is one query: its columns say nothing about sinks.
    return call.step == 0


@dataclass(frozen=True)
class FirstKey:
    """Mean weight on the first key, over the queries that may read it, 0 to 1.

    Where every query reads just what stands before it, the curve has ``alpha_1`` of the first T
    positions for T = 1 to 256 (point T; point 0 is empty), over the sequences at least that long.
    """

    name: str = "first_key"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return _needs_sequence(context)

    def start(self, call: CallView) -> Finish:
        rows = call.key_product("first key", first_key(call))

        def finish() -> Iterator[Result]:
            uniform = call.uniform.key_product("first key", first_key(call))
            yield Score("", *call.mean_over_queries(rows.values, uniform.values[:, 0] > 0))
            if _whole(call) and call.plan.memo("reads all before", lambda: _reads_all_before(call)):
                yield _by_length(call, rows.values)

        return finish


@dataclass(frozen=True)
class SinkWeight:
    """``alpha_k`` of the first key and the largest of any key, mean over sequences, 0 to 1.

    ``any`` looks at keys that at least half as many queries may read as the most-read key: the
    last keys of a causal sequence have few readers, and one confident reader is no sink. The
    curve has ``alpha_k`` of the first 256 keys; its denominators count the sequences that long.
    """

    name: str = "sink_weight"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return _needs_sequence(context)

    def start(self, call: CallView) -> Finish:
        received = _received(call)

        def finish() -> Iterator[Result]:
            if not _whole(call):
                return
            alpha = _alpha(call, received)
            plan = call.plan
            first, there = _of_first(plan, alpha)
            yield Score("k=1", plan.sum_blocks(first), plan.sum_blocks(there))
            yield Score("any", plan.sum_blocks(_largest(call, alpha)), plan.count_blocks())
            yield _curve(call, alpha)

        return finish


@dataclass(frozen=True)
class SinkRate:
    """Share of sequences in which ``alpha_k`` is above eps: Sink_k^eps, 0 to 1.

    Attributes:
        eps: thresholds; each gives variants of its own.
    """

    name: str = "sink_rate"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True
    eps: tuple[float, ...] = EPSILONS

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return _needs_sequence(context)

    def start(self, call: CallView) -> Finish:
        received = _received(call)

        def finish() -> Iterator[Score]:
            if not _whole(call):
                return
            alpha = _alpha(call, received)
            plan = call.plan
            first, there = _of_first(plan, alpha)
            largest = _largest(call, alpha)
            for eps in self.eps:
                flagged = plan.sum_blocks((first > eps).double())
                yield Score(f"k=1,eps={eps:g}", flagged, plan.sum_blocks(there))
                flagged = plan.sum_blocks((largest > eps).double())
                yield Score(f"any,eps={eps:g}", flagged, plan.count_blocks())

        return finish


def _of_first(plan: CallPlan, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 ``[block head]`` and ``[block 1]``: alpha of the first key, and if there is one."""
    first = plan.memo("first key by block", lambda: _own_keys(plan, plan.key_rank == 0))
    chosen = torch.einsum("bhk,bk->bh", alpha, first.double())
    return chosen, first.any(-1, keepdim=True).double()


def _largest(call: CallView, alpha: Tensor) -> Tensor:
    """Float64 ``[block head]``: the largest alpha among keys with enough readers."""

    def enough() -> Tensor:
        readers = call.plan.columns_by_block(call.reader_counts[:, None])
        return readers >= _FEWEST_READERS * readers.amax(-1, keepdim=True)

    return alpha.masked_fill(~call.plan.memo("enough readers", enough), 0.0).amax(-1)


def _curve(call: CallView, alpha: Tensor) -> Profile:
    plan = call.plan

    def places() -> Tensor:
        # [block point]: the key that is the point-th of its sequence, -1 where there is none.
        rank = plan.key_rank[plan.block_row]
        own = _own_keys(plan, (plan.key_rank >= 0) & (plan.key_rank < _CURVE_POINTS))
        points = min(_CURVE_POINTS, int(rank.max()) + 1)
        found = torch.full((plan.blocks, points + 1), -1, device=plan.device)
        column = torch.arange(rank.shape[1], device=plan.device).expand_as(rank)
        return found.scatter_(1, rank.where(own, points), column.where(own, -1))[:, :points]

    index = plan.memo("sink curve", places)
    there = (index >= 0)[:, None]
    values = alpha.gather(-1, index.clamp_min(0)[:, None].expand(-1, alpha.shape[1], -1))
    count = there.double().sum(0)
    return Profile("key", values.masked_fill(~there, 0.0).sum(0), count)


def _reads_all_before(call: CallView) -> bool:
    """Whether every query may read itself and all that stands before it, and nothing else."""
    plan = call.plan
    if not plan.single:
        return False
    before = plan.of_queries("rank") + 1
    return bool((call.read_counts == before)[plan.used].all())


def _by_length(call: CallView, weights: Tensor) -> Profile:
    """``alpha_1`` over the first T queries; ``weights [batch head query]`` on the first key."""
    plan = call.plan

    def order() -> Tensor:
        # [batch query]: the queries of each sequence in order, those of padding behind them.
        rank = plan.of_queries("rank").masked_fill(~plan.used, rank_limit)
        return rank.argsort(dim=-1, stable=True)[:, :_CURVE_POINTS]

    rank_limit = weights.shape[-1]
    index = plan.memo("queries by rank", order)
    points = torch.arange(1, index.shape[1] + 1, device=index.device)
    there = (points <= plan.used.sum(-1, keepdim=True))[:, None]
    ordered = weights.double().gather(-1, index[:, None].expand(-1, weights.shape[1], -1))
    alpha = (ordered.cumsum(-1) / points).masked_fill(~there, 0.0).sum(0)
    none = alpha.new_zeros(alpha.shape[0], 1)
    count = there.double().sum(0)
    return Profile("length", torch.cat([none, alpha], 1), torch.cat([count[:, :1] * 0, count], 1))


def _own_keys(plan: CallPlan, chosen: Tensor) -> Tensor:
    """Bool ``[block key]``: chosen keys ``[batch key]`` of each block."""
    if plan.single:
        return chosen
    blocks = torch.arange(plan.blocks, device=plan.device)
    return chosen[plan.block_row] & (plan.key_block[plan.block_row] == blocks[:, None])


FIRST_KEY = FirstKey()
SINK_WEIGHT = SinkWeight()
SINK_RATE = SinkRate()
