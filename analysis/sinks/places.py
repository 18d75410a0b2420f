"""What a position is, in words that are the same for every example: its place in a sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probes.tokens.map import ROLES, TowerTokens

_PAD, _IMAGE = ROLES.index("pad"), ROLES.index("image")


class Place(NamedTuple):
    """A position of a sequence.

    Attributes:
        position: counted from the start of its sequence, padding left out; -1 where not known.
        role, token: as the token map has them; empty where not known.
        row, column: of a patch in the grid of its tile, else -1.
    """

    position: int = -1
    role: str = ""
    token: str = ""
    row: int = -1
    column: int = -1


UNKNOWN = Place()


class Places:
    """The places of the positions of one tower in one batch."""

    def __init__(self, tokens: TowerTokens | None) -> None:
        self._tokens = tokens
        self._rank = None if tokens is None else sequence_rank(tokens)

    def of(self, index: int | None) -> Place:
        """The place of a flat position."""
        tokens = self._tokens
        if tokens is None or self._rank is None or index is None or index < 0:
            return UNKNOWN
        return Place(
            int(self._rank[index]),
            ROLES[int(tokens.role[index])],
            tokens.text[index] if tokens.text else "",
            int(tokens.row[index]),
            int(tokens.column[index]),
        )


def sequence_rank(tokens: TowerTokens) -> Tensor:
    """Long ``[n]``: place of each position within its row, padding not counted, -1 for padding."""
    real = (tokens.role != _PAD).long()
    before = real.cumsum(0) - real
    rank = before - before[tokens.starts[:-1]].repeat_interleave(tokens.lengths)
    return rank.masked_fill(real == 0, -1)


def behind_image(tokens: TowerTokens) -> Tensor:
    """Bool ``[n]``: positions behind the last image position of their row, padding left out.

    No position of a row without an image is behind one.
    """
    image = tokens.role == _IMAGE
    row = torch.arange(tokens.rows).repeat_interleave(tokens.lengths)
    place = torch.where(image, torch.arange(len(tokens)), -1)
    last = torch.full((tokens.rows,), -1).scatter_reduce(0, row, place, "amax")
    return (torch.arange(len(tokens)) > last[row]) & (last[row] >= 0) & (tokens.role != _PAD)
