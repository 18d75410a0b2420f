"""A tile as measures see it: padding rows are zero, and what several need is computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from probes.attention_call import Tile

T = TypeVar("T")

_COARSE_ENTRIES = 1 << 16


class TileView:
    """A tile whose rows that do not count (padding) are zero.

    Attributes:
        batch, rows: where the tile lies in the call.
        pattern: float32 ``[batch head row key]``.
    """

    def __init__(self, tile: Tile, used: Tensor | None, workspace: Workspace) -> None:
        self.tile = tile
        self.batch = tile.batch
        self.rows = tile.rows
        self.pattern = tile.pattern
        self._workspace = workspace
        self._memory: dict[str, Any] = {}
        if used is not None:
            self.pattern = tile.pattern.masked_fill(~used[:, None, :, None], 0.0)

    @property
    def keys(self) -> int:
        return self.pattern.shape[-1]

    def memo(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all measures that look at this tile."""
        if name not in self._memory:
            self._memory[name] = make()
        return self._memory[name]

    @property
    def row_max(self) -> Tensor:
        """Float ``[batch head row]``; of rows that do not count, anything."""
        return self.tile.row_max

    @property
    def is_coarse(self) -> bool:
        """Whether one row of the batch has so many entries that a step per row costs little.

        Batched products over (batch, query) need one step per batch row, because those two axes
        of a tile cannot be merged without a copy.
        """
        return self.pattern[0].numel() >= _COARSE_ENTRIES or self.pattern.shape[0] == 1

    def room(self, shape: tuple[int, ...], place: int) -> Tensor:
        """Float memory of a shape, valid until it is asked for again; what was there is lost.

        Places 0 and 1 are taken by `squared` and `weighted`.
        """
        return self._workspace.room(shape, place, self.pattern.device)

    def weighted(self, weights: Tensor) -> Tensor:
        """Float ``[batch head row key]``: pattern times weights, valid until the next product.

        Memory is used again: a new copy of a tile costs as much as the product.
        """
        return torch.mul(self.pattern, weights, out=self._workspace.like(self.pattern, 1))

    @property
    def entropy_nats(self) -> Tensor:
        """Float ``[batch head row]``; of rows that do not count, anything."""
        return self.tile.entropy_nats

    @cached_property
    def squared(self) -> Tensor:
        """Float ``[batch head row key]``: squared weights, valid until the next tile."""
        return torch.mul(self.pattern, self.pattern, out=self._workspace.like(self.pattern, 0))

    @cached_property
    def squared_norm(self) -> Tensor:
        """Float ``[batch head row]``: the sum of a row's squared weights."""
        return self.squared.sum(-1)

    @cached_property
    def inverse_norm(self) -> Tensor:
        """Float ``[batch head row]``: 1 / |row|, 0 for an empty row."""
        return inverse_root(self.squared_norm)


class Workspace:
    """Memory for copies of a tile, used again for every tile."""

    def __init__(self) -> None:
        self._rooms: dict[int, Tensor] = {}

    def like(self, pattern: Tensor, place: int) -> Tensor:
        """Float, the shape of a pattern; what was there before is lost."""
        return self.room(pattern.shape, place, pattern.device)

    def room(self, shape: tuple[int, ...], place: int, device: torch.device) -> Tensor:
        """Float memory of a shape; what was there before is lost."""
        size = prod(shape)
        room = self._rooms.get(place)
        if room is None or room.numel() < size or room.device != device:
            room = self._rooms[place] = torch.empty(size, device=device)
        return room[:size].view(shape)


def inverse_root(squared: Tensor) -> Tensor:
    """``1 / sqrt(x)``, 0 where x is 0."""
    return squared.clamp_min(1e-30).rsqrt().masked_fill(squared == 0, 0.0)
