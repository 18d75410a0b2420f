"""The pattern of one head on one example: rows, columns, and a small picture of all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """What one head reads on one example.

    Attributes:
        queries: int32 ``[row]``, ascending: flat position of each query among the example's
            positions of the head's tower; numbers of their own where ``named_queries`` is false.
        keys: how many keys there are: positions of ``key_tower``, or numbers of their own where
            ``named_keys`` is false.
        weight: float16 ``[row kept]``.
        key: which key each weight is of, ``[row kept]``; None where all are kept, in order.
        lossless: whether all weights are kept; else what a row lacks to 1 is spread over the rest.
        row_sums: ``one``, ``below one`` (a learned sink takes the rest) or ``any``.
    """

    queries: NDArray[np.int32]
    keys: int
    key_tower: str
    weight: NDArray[np.float16]
    key: NDArray[np.int64] | None
    lossless: bool
    row_sums: str
    named_queries: bool = True
    named_keys: bool = True

    def place(self, query: int) -> int:
        """Which row a query has.

        Raises:
            ValueError: it has none.
        """
        found = int(np.searchsorted(self.queries, query))
        if found == len(self.queries) or self.queries[found] != query:
            raise ValueError(
                f"`query` must be a position that this head reads from, got {query}. "
                f"Choose one of {len(self.queries)} positions from {self.queries[:1]} on."
            )
        return found

    def row(self, query: int) -> NDArray[np.float32]:
        """Float32 ``[key]``: what a query reads; 0 where a key is not among those kept."""
        place = self.place(query)
        if self.key is None:
            return self.weight[place].astype(np.float32)
        full = np.zeros(self.keys, np.float32)
        # Added up, as rows are padded with the weight 0 of key 0.
        np.add.at(full, self.key[place], self.weight[place].astype(np.float32))
        return full

    def column(self, key: int) -> NDArray[np.float32]:
        """Float32 ``[row]``: how much each query of `queries` reads a key."""
        if self.key is None:
            return self.weight[:, key].astype(np.float32)
        mine = np.where(self.key == key, self.weight, np.float16(0))
        return mine.sum(-1, dtype=np.float32)

    def missing(self) -> NDArray[np.float32]:
        """Float32 ``[row]``: what is not kept of each query's weight; 0 where all is."""
        if self.lossless or self.row_sums != "one":
            return np.zeros(len(self.queries), np.float32)
        return (1 - self.weight.sum(-1, dtype=np.float32)).clip(0, 1)

    def pooled(self, most: int) -> NDArray[np.float32]:
        """Float32 ``[row column]``, at most ``most`` each: the mean over the queries of a cell of
        the weight on its keys together, so that rows still sum to what they do.

        Cells are of the same number of positions, the last ones of what is left.
        """
        rows, down = len(self.queries), _cells(len(self.queries), most)
        across = _cells(self.keys, most)
        shape = (-(-rows // down), -(-self.keys // across))
        cell_row = np.arange(rows) // down
        if self.key is None:
            starts = np.arange(0, self.keys, across)
            summed = np.add.reduceat(self.weight.astype(np.float32), starts, axis=1)
            total = np.add.reduceat(summed, np.arange(0, rows, down), axis=0)
        else:
            cells = cell_row[:, None] * shape[1] + self.key // across
            flat = np.bincount(cells.ravel(), self.weight.ravel(), shape[0] * shape[1])
            total = flat.reshape(shape)
        return (total / np.bincount(cell_row)[:, None]).astype(np.float32)

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Row, key and weight of every pair that is kept and not 0, row by row."""
        rows, kept = np.nonzero(self.weight)
        keys = kept if self.key is None else self.key[rows, kept]
        return rows, keys.astype(np.int64), self.weight[rows, kept].astype(np.float32)


def _cells(count: int, most: int) -> int:
    """Positions per cell."""
    return max(1, -(-count // most))
