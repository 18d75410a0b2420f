"""The part of a stream of head outputs that one of several processes reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from itertools import islice
from typing import Any

from sae.activations.source import Activations, Chunk


class RankShare:
    """Chunks ``rank``, ``rank + ranks``, ... of each pass over a source, counted from 0 again.

    Sources whose `chunks` takes ``every`` do not make the others' chunks at all.
    """

    def __init__(self, source: Activations, rank: int, ranks: int) -> None:
        if not 0 <= rank < ranks:
            raise ValueError(f"`rank` must be 0 to {ranks - 1}, got {rank}. Give the process' own.")
        self.source, self.rank, self.ranks = source, rank, ranks
        self._steps = "every" in signature(source.chunks).parameters

    @property
    def widths(self) -> Mapping[str, int]:
        """As of the source."""
        return self.source.widths

    @property
    def heads(self) -> Mapping[str, int]:
        """As of the source."""
        return self.source.heads

    @property
    def about(self) -> Mapping[str, Any]:
        """As of the source: together, the processes read all of it."""
        return self.source.about

    def chunks(self, epoch: int, start: int = 0) -> Iterator[Chunk]:
        """One pass over this process' part, from its chunk ``start`` on."""
        first = self.rank + start * self.ranks
        if self._steps:
            made: Any = self.source.chunks
            return made(epoch, first, every=self.ranks)
        return islice(self.source.chunks(epoch, first), 0, None, self.ranks)
