"""The firings of each latent that are kept while a data set streams by: the strongest, a sample.

What is kept depends on the data alone, not on how it was put into batches or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FEWEST = 1 << 20
"""Firings that wait at least before they are sorted in; then as many as are kept, so that sorting
does not cost more and more: of a large dictionary millions are kept."""


@dataclass(frozen=True)
class Firings:
    """Some firings, as columns.

    Attributes:
        slot: number of the latent among those that are followed.
        example: index in the source's ids.
        position: position of its example, as `sae.activations.places.Places` counts them.
    """

    slot: Int[Tensor, "firing"]
    strength: Float[Tensor, "firing"]
    example: Int[Tensor, "firing"]
    position: Int[Tensor, "firing"]

    def __len__(self) -> int:
        return self.slot.numel()

    def at(self, index: Tensor) -> Firings:
        """Those of an index or mask."""
        columns = (self.slot, self.strength, self.example, self.position)
        return Firings(*(column[index] for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Firings]) -> Firings:
        """All of several."""
        return cls(
            torch.cat([part.slot for part in parts]),
            torch.cat([part.strength for part in parts]),
            torch.cat([part.example for part in parts]),
            torch.cat([part.position for part in parts]),
        )

    @classmethod
    def none(cls) -> Firings:
        empty = torch.empty(0, dtype=torch.long)
        return cls(empty, torch.empty(0), empty, empty)


class Strongest:
    """The examples at which each latent is strongest, each example once, at its strongest row."""

    def __init__(self, slots: int, count: int) -> None:
        self.count = count
        self._kept = Firings.none()
        self._waiting: list[Firings] = []
        self._least = torch.full((slots,), float("-inf"))

    @property
    def kept(self) -> Firings:
        """Those so far."""
        if self._waiting:
            self._merge()
        return self._kept

    def add(self, new: Firings) -> None:
        """Take what is stronger than what is kept."""
        self._waiting.append(new.at(new.strength >= self._least[new.slot]))
        if sum(map(len, self._waiting)) > max(len(self._kept), _FEWEST):
            self._merge()

    def _merge(self) -> None:
        both = Firings.joined([self._kept, *self._waiting])
        self._waiting = []
        by_example = _order(both.position, -both.strength, both.example, both.slot)
        both = both.at(by_example)
        first = torch.ones(len(both), dtype=torch.bool)
        first[1:] = (both.slot[1:] != both.slot[:-1]) | (both.example[1:] != both.example[:-1])
        both = both.at(first)
        both = both.at(_order(both.example, -both.strength, both.slot))
        rank = rank_within(both.slot)
        self._kept = both.at(rank < self.count)
        full = self._kept.at(rank_within(self._kept.slot) == self.count - 1)
        self._least[full.slot] = full.strength


class Sampled:
    """A uniform sample of the firings of each latent, drawn by a hash of where they are."""

    def __init__(self, slots: int, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._kept, self._rank = Firings.none(), torch.empty(0, dtype=torch.long)
        self._waiting: list[tuple[Firings, Tensor]] = []
        self._most = torch.full((slots,), torch.iinfo(torch.long).max)

    @property
    def kept(self) -> Firings:
        """Those so far."""
        if self._waiting:
            self._merge()
        return self._kept

    def add(self, new: Firings, keys: Int[Tensor, "example"], latents: Int[Tensor, "slot"]) -> None:
        """Take those of the lowest hashes.

        Args:
            keys: a number for each example, of its id alone.
        """
        draw = mixed(keys[new.example] ^ mixed(latents[new.slot] + self.seed * 1_000_003))
        draw = mixed(draw ^ new.position)
        low = draw <= self._most[new.slot]
        self._waiting.append((new.at(low), draw[low]))
        if sum(len(ranks) for _, ranks in self._waiting) > max(len(self._kept), _FEWEST):
            self._merge()

    def _merge(self) -> None:
        both = Firings.joined([self._kept, *(firings for firings, _ in self._waiting)])
        ranks = torch.cat([self._rank, *(ranks for _, ranks in self._waiting)])
        self._waiting = []
        order = _order(both.position, both.example, ranks, both.slot)
        both, ranks = both.at(order), ranks[order]
        stays = rank_within(both.slot) < self.count
        self._kept, self._rank = both.at(stays), ranks[stays]
        full = rank_within(self._kept.slot) == self.count - 1
        self._most[self._kept.slot[full]] = self._rank[full]


def mixed(values: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A 64-bit hash of each number (the finaliser of SplitMix64; Steele et al. 2014)."""
    values = values + -7046029254386353131
    values = (values ^ _shifted(values, 30)) * -4658895280553007687
    values = (values ^ _shifted(values, 27)) * -7723592293110705685
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    # Torch shifts the sign in; a hash wants zeros there.
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def rank_within(slot: Int[Tensor, "firing"]) -> Int[Tensor, "firing"]:
    """The place of each among those of its slot; slots must be ascending.

    >>> rank_within(torch.tensor([0, 0, 2, 2, 2])).tolist()
    [0, 1, 0, 1, 2]
    """
    place = torch.arange(len(slot))
    first = torch.ones_like(slot, dtype=torch.bool)
    first[1:] = slot[1:] != slot[:-1]
    return place - torch.where(first, place, 0).cummax(0).values if len(slot) else place


def _order(*columns: Tensor) -> Tensor:
    """Order by the last column, ties by the one before it, and so on; each ascending."""
    order = columns[0].argsort(stable=True)
    for column in columns[1:]:
        order = order[column[order].argsort(stable=True)]
    return order
