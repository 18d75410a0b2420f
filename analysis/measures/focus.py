"""Columns of the whole pattern: keys that take everything, and rows that all look alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.tile_view import TileView


@dataclass(frozen=True)
class ColumnNorm:
    """Largest root mean square weight of a key: ``max_k sqrt(mean_q A_qk^2)``, 0 to 1.

    The mean is over all queries of the sequence, so this is the largest column norm of the
    pattern over the square root of the number of queries. Mean over sequences.
    """

    name: str = "column_norm"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        if call.step:
            return _nothing
        squares = call.columns("squares", column_squares)

        def finish() -> Iterator[Score]:
            plan = call.plan
            largest = plan.columns_by_block(squares.values).amax(-1)
            mean = largest / plan.queries_by_block.clamp_min(1)[:, None]
            yield Score("", plan.sum_blocks(mean.sqrt()), plan.count_blocks())

        return finish


@dataclass(frozen=True)
class Overfocus:
    """Mean over queries of the cosine between their row and the mean row, 0 to 1.

    1: all queries look at the same keys in the same proportion. Variant ``adl`` zeroes weights of
    at most ``2 / keys`` in both, as the attention diversification loss does (Guo et al., ICCV
    2023), and is taken where every query may read every key.
    """

    name: str = "overfocus"
    unit: str = "cosine"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        if call.step:
            return _nothing
        plan = call.plan
        total = call.column_product("received", lambda tile: None)
        directions = call.column_product("row directions", lambda tile: tile.inverse_norm)
        thresholded = None
        unknown = plan.uniform is None and not plan.mask.causal
        if unknown or (plan.uniform is not None and plan.memo("full", lambda: _is_full(call))):
            thresholded = call.columns("large row directions", lambda t: _large(call, t))

        def finish() -> Iterator[Score]:
            count = plan.queries_by_block.clamp_min(1)[:, None]
            mean = plan.columns_by_block(total.values) / count[..., None]
            summed = plan.columns_by_block(directions.values)
            yield Score("", plan.sum_blocks(_cosine(mean, summed) / count), plan.count_blocks())
            if thresholded is not None and plan.memo("full", lambda: _is_full(call)):
                keys = (plan.columns_by_block(call.reader_counts[:, None]) > 0).sum(-1)
                large = mean.masked_fill(mean <= 2 / keys[..., None], 0.0)
                summed = plan.columns_by_block(thresholded.values)
                cosine = _cosine(large, summed) / count
                yield Score("adl", plan.sum_blocks(cosine), plan.count_blocks())

        return finish


def column_squares(tile: TileView) -> Tensor:
    """Float ``[batch head key]``. As a product: a sum over rows takes twice as long."""
    batch, heads, rows, _ = tile.pattern.shape
    return (tile.pattern.new_ones(batch, heads, 1, rows) @ tile.squared)[..., 0, :]


def _large(call: CallView, tile: TileView) -> Tensor:
    """Float ``[batch head key]``: sum over rows of row / |row|, weights up to 2 / keys dropped."""
    streamed = call.plan.uniform is not None  # Before that, counts are not complete.
    floor = call.plan.memo("floor", lambda: _common_floor(call)) if streamed else None
    if floor is not None:
        large = torch.nn.functional.threshold(tile.pattern, floor, 0.0)
    else:
        counts = call.read_counts[tile.batch, tile.rows].clamp_min(1).float()
        low = tile.pattern <= (2 / counts)[:, None, :, None]
        large = tile.pattern.masked_fill(low, 0.0)
    norm = torch.linalg.vector_norm(large, dim=-1)
    inverse = norm.clamp_min(1e-15).reciprocal().masked_fill(norm == 0, 0.0)
    return (inverse[..., None, :] @ large)[..., 0, :]


def _common_floor(call: CallView) -> float | None:
    """``2 / keys`` if all queries that count read equally many keys."""
    counts = call.read_counts[call.plan.used].unique()
    return 2 / float(counts[0]) if counts.numel() == 1 and float(counts[0]) > 0 else None


def _nothing() -> tuple[Score, ...]:
    return ()


def _cosine(mean: Tensor, summed: Tensor) -> Tensor:
    """``mean . summed / |mean|`` over keys, 0 where the mean row is empty."""
    norm = mean.norm(dim=-1)
    return (mean * summed).sum(-1) / norm.masked_fill(norm == 0, 1.0)


def _is_full(call: CallView) -> bool:
    """Whether every counted query of a block may read all the keys that any of them may."""
    plan = call.plan
    readers = plan.columns_by_block(call.reader_counts[:, None])[:, 0]
    queries = plan.queries_by_block[:, None]
    return bool(((readers == 0) | (readers == queries)).all())


OVERFOCUS = Overfocus()
COLUMN_NORM = ColumnNorm()
