"""Attention patterns of any size brought to one side by area, rows still distributions."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Pattern = TypeVar("Pattern", Tensor, NDArray)

LEAST_MASS = 1e-12
"""A row with less weight than this on the keys that are drawn has none there."""

TABLE_BYTES = 1 << 25
"""What tables of lengths seen before may take: three of 32,768 positions and 64 cells."""

_POSITIONS = 4096


def pool(pattern: Pattern, side: int) -> Pattern:
    """The pattern on ``side`` x ``side`` cells: ``R A C``.

    The query axis and the key axis are each cut into ``side`` stretches of equal length, at
    fractions of a position where need be. ``R [side query]`` averages the rows of a stretch by how
    much of it each query takes up; ``C [key side]`` splits a key's weight over the stretches that
    it lies in. So rows that sum to one stay so, whether there are more positions than cells or
    fewer, and pooling is linear. A position that lies in several cells
    reads itself in all of them, so that a causal pattern reaches beyond the diagonal there.

    Args:
        pattern: ``[... query key]``, numpy or torch; half precision is raised to float32.
        side: number of cells on each axis.

    Returns:
        ``[... side side]``, of the same library and device.

    Raises:
        ValueError: fewer than two axes, an empty axis, or a side below 1.

    >>> import numpy as np
    >>> pool(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]), 2).round(3).tolist()
    [[0.917, 0.083], [0.333, 0.667]]
    """
    if pattern.ndim < 2:
        raise ValueError(
            f"A pattern must have a query and a key axis, got shape {tuple(pattern.shape)}."
        )
    given = torch.as_tensor(pattern)
    if not given.is_floating_point() or given.element_size() < 4:
        given = given.float()
    queries, keys = given.shape[-2:]
    average, split = average_queries(queries, side), split_keys(keys, side)
    pooled = average.to(given) @ (given @ split.to(given))
    return pooled if isinstance(pattern, Tensor) else pooled.numpy()  # pyright: ignore[reportReturnType]


def average_queries(queries: int, side: int) -> Tensor:
    """R: float64 ``[side query]``, rows sum to one: the share of a cell that each query makes."""
    return _TABLES.find(queries, side).double().T / queries


def split_keys(keys: int, side: int) -> Tensor:
    """C: float64 ``[key side]``, rows sum to one: the share of a key that lies in each cell."""
    return _TABLES.find(keys, side).double() / side


class _Tables:
    """Tables of `_overlap`: the last ones that were asked for, as many as fit into some bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[tuple[int, int, str], Tensor] = OrderedDict()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self._kept.values())

    def find(self, count: int, side: int, device: torch.device | str = "cpu") -> Tensor:
        """Float32 ``[position cell]``; one that does not fit is made anew each time."""
        key = count, side, str(device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        table = _overlap(count, side).to(device)
        with self._lock:
            if table.nbytes <= self.most_bytes:
                self._kept[key] = table
                while self.nbytes > self.most_bytes:
                    self._kept.popitem(last=False)
        return table


_TABLES = _Tables(TABLE_BYTES)


def _overlap(count: int, side: int) -> Tensor:
    """Float32 ``[position cell]``: how much of a position lies in a cell, in whole numbers.

    In units of ``1 / (count * side)`` of the axis all edges are integers, so that nothing is
    rounded; no overlap is longer than a position or a cell, so that float32 holds it.
    """
    if count < 1 or side < 1:
        raise ValueError(
            f"Pooling must go from at least one position to at least one cell, got {count} "
            f"positions and {side} cells."
        )
    table = torch.empty(count, side)
    cell = torch.arange(side) * count
    for begin in range(0, count, _POSITIONS):
        some = torch.arange(begin, min(begin + _POSITIONS, count))
        start = some[:, None] * side
        last = torch.minimum(start + side, cell + count)
        table[some] = (last - torch.maximum(start, cell)).clamp_min(0).float()
    return table


class Pooler:
    """Patterns of one shape, pooled from pieces of their rows, each row renormalised.

    A row counts by its distribution over the keys that are drawn. Rows without weight there are
    left out of the averages of `pool`; a cell row that has nothing but such rows stays 0.

    Args:
        patterns: how many are pooled side by side.
        queries, keys: what is drawn of each, in positions.
        side: number of cells on each axis.
    """

    def __init__(
        self, patterns: int, queries: int, keys: int, side: int, device: torch.device | str = "cpu"
    ) -> None:
        # Poolers of one length share a table, which is scaled where it is used.
        self._of_queries = _TABLES.find(queries, side, "cpu")
        self._of_keys = _TABLES.find(keys, side, device)
        self._sums = torch.zeros(patterns, side, side, device=device)
        self._counted = torch.zeros(patterns, side, device=device)
        self._mass = torch.zeros(patterns, dtype=torch.float64, device=device)
        self._there = torch.zeros(patterns, dtype=torch.long, device=device)
        self._queries, self._side = queries, side

    def add(self, part: Tensor, queries: Tensor, keys: Tensor) -> None:
        """Take in some rows.

        Args:
            part: ``[pattern row key]``, weights; keys that are not handed over have none.
            queries, keys: long ``[row]`` and ``[key]``: place of each among the drawn positions.
        """
        part = part.float()
        mass = part.sum(-1)
        there = mass >= LEAST_MASS
        share = mass.reciprocal().masked_fill(~there, 0.0)
        # Rows that follow one another lie in few cells: averaged first, they cost little.
        average = self._of_queries[queries].T / self._queries
        touched = average.any(1).nonzero().flatten()
        cells = slice(int(touched[0]), int(touched[-1]) + 1)
        average = average[cells].to(part.device)
        pooled = (average * share[:, None]) @ part @ _taken(self._of_keys, keys)
        self._sums[:, cells] += pooled / self._side
        self._counted[:, cells] += there.float() @ average.T
        self._mass += mass.double().sum(-1)
        self._there += there.sum(-1)

    @property
    def images(self) -> Tensor:
        """Float32 ``[pattern side side]``: rows sum to one, or to 0 where nothing has weight."""
        counted = self._counted[..., None]
        return (self._sums / counted).masked_fill(counted < 1e-6, 0.0)

    @property
    def mass(self) -> Tensor:
        """Float64 ``[pattern]``: mean weight of a row on the drawn keys; NaN if any weight was."""
        return self._mass / self._queries

    @property
    def empty(self) -> Tensor:
        """Long ``[pattern]``: number of rows without weight on the drawn keys."""
        return self._queries - self._there


def _taken(table: Tensor, places: Tensor) -> Tensor:
    """Some rows of a table; without a copy where they are its first ones, in order."""
    count = places.numel()
    if torch.equal(places, torch.arange(count, device=places.device)):
        return table[:count]
    return table[places.to(table.device)]
