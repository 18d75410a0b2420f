"""How widely a head spreads its weight: entropy, confidence, effective number of keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.tile_view import TileView
from probes.tokens.map import ROLES

SINK_ROLES = ("bos", "cls", "register")
_MOST_RUNS = 8


@dataclass(frozen=True)
class Entropy:
    """Mean over queries of ``-sum_k p log p``, in nats, from 0 to log of the allowed keys."""

    name: str = "entropy"
    unit: str = "nats"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        rows = call.rows("entropy", lambda tile: tile.entropy_nats)

        def finish() -> Iterator[Score]:
            yield Score("", *call.mean_over_queries(rows.values))

        return finish


@dataclass(frozen=True)
class NormalisedEntropy:
    """Mean over queries of entropy / log(allowed keys), 0 to 1; queries with 2 keys or more."""

    name: str = "entropy_normalised"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        rows = call.rows("entropy", lambda tile: tile.entropy_nats)

        def finish() -> Iterator[Score]:
            several = call.read_counts > 1
            most = call.read_counts.log().masked_fill(~several, 1.0)
            yield Score("", *call.mean_over_queries(rows.values / most[:, None], several))

        return finish


@dataclass(frozen=True)
class Confidence:
    """Mean over queries of a row's largest weight (Voita et al. 2019), 0 to 1.

    Variant ``no_sink`` leaves out the columns on which sinks sit (bos, cls, registers and the
    first key), as Voita et al. leave out the end of the sentence, and counts the queries that may
    read anything else. Rows are not renormalised.
    """

    name: str = "confidence"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        largest = call.rows("row_max", lambda tile: tile.row_max)
        known = call.plan.key_tokens is not None
        if known:
            sinks = call.plan.memo("sinks", lambda: sink_columns(call))
            runs = call.plan.memo("runs between sinks", lambda: _runs(sinks))
            without = call.rows("row_max_no_sink", lambda tile: _max_between(tile, runs, sinks))

        def finish() -> Iterator[Score]:
            yield Score("all", *call.mean_over_queries(largest.values))
            if known:
                others = call.uniform.rows("row_max_no_sink", _unasked).values[:, 0] > 0
                yield Score("no_sink", *call.mean_over_queries(without.values, others))

        return finish


@dataclass(frozen=True)
class EffectiveKeys:
    """Mean over queries of ``1 / sum_k p^2``: how many keys share the weight, 1 to all."""

    name: str = "effective_keys"
    unit: str = "keys"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        rows = call.rows("squared_norm", lambda tile: tile.squared_norm)

        def finish() -> Iterator[Score]:
            yield Score("", *call.mean_over_queries(rows.values.clamp_min(1e-12).reciprocal()))

        return finish


def sink_columns(call: CallView) -> Tensor:
    """Bool ``[batch key]``: bos, cls and register positions, and the first key."""
    wanted = torch.tensor([ROLES.index(role) for role in SINK_ROLES], device=call.plan.device)
    return torch.isin(call.plan.of_keys("role"), wanted) | (call.plan.key_rank == 0)


def _runs(sinks: Tensor) -> list[list[tuple[int, int]]] | None:
    """Per batch row the stretches of keys between sinks; None where they are too many."""
    found = []
    for row in sinks.tolist():
        edges = [-1, *(index for index, sink in enumerate(row) if sink), len(row)]
        pairs = pairwise(edges)
        found.append([(a + 1, b) for a, b in pairs if b > a + 1])
    return None if any(len(runs) > _MOST_RUNS for runs in found) else found


def _max_between(tile: TileView, runs: list[list[tuple[int, int]]] | None, sinks: Tensor) -> Tensor:
    if runs is None:
        chosen = sinks[tile.batch, None, None, : tile.keys]
        return tile.pattern.masked_fill(chosen, 0.0).amax(-1)
    of_tile = runs[tile.batch]
    if all(row == of_tile[0] for row in of_tile):
        return _max_of(tile.pattern, of_tile[0], tile.keys)
    parts = [
        _max_of(tile.pattern[index : index + 1], row, tile.keys)
        for index, row in enumerate(of_tile)
    ]
    return torch.cat(parts)


def _max_of(pattern: Tensor, runs: list[tuple[int, int]], keys: int) -> Tensor:
    parts = [pattern[..., a : min(b, keys)].amax(-1) for a, b in runs if a < keys]
    if not parts:
        return pattern.new_zeros(pattern.shape[:-1])
    return parts[0] if len(parts) == 1 else torch.stack(parts).amax(0)


def _unasked(tile: TileView) -> Tensor:
    raise AssertionError("the uniform call was asked for this before the call itself")


ENTROPY = Entropy()
NORMALISED_ENTROPY = NormalisedEntropy()
CONFIDENCE = Confidence()
EFFECTIVE_KEYS = EffectiveKeys()
