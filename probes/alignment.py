"""Which position of the token map each query and key of a call is."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.tokens.map import TokenMap, TowerTokens

GROWING_TOWERS = ("language", "decoder")
"""Towers whose sequence grows while tokens are generated."""


def tokens_while_generating(tokens: TokenMap, count: int) -> TokenMap:
    """The token map with room for ``count`` generated tokens in the towers that grow."""
    if not count:
        return tokens
    return TokenMap(
        {
            name: tower.with_generated(count) if name in GROWING_TOWERS else tower
            for name, tower in tokens.towers.items()
        }
    )


def flat_positions(
    tokens: TowerTokens | None,
    batch: int,
    length: int,
    *,
    offset: int = 0,
    last: int | None = None,
    packed: bool = False,
) -> Tensor | None:
    """Long ``[batch length]``: flat position in the token map, or None where it is not known.

    Args:
        tokens: token map of the tower.
        batch, length: shape of the call's queries or keys.
        offset: for packed calls (batch 1), the flat position where this call begins.
        packed: whether calls of this site were seen to be parts of one sequence (windows);
            otherwise a packed call must begin and end where rows do.
        last: while decoding, the position within its row of the last of these ``length`` tokens;
            rows of the map are then longer than what the call sees.

    A call fits the map in one of three ways: row by row with equal lengths; packed, all rows one
    after the other (images of a packed vision tower, or windows of one); decoding.
    """
    if tokens is None:
        return None
    lengths = tokens.lengths
    if last is not None:
        first = last - length + 1
        fits = tokens.rows == batch and first >= 0 and bool((lengths > last).all())
        return tokens.starts[:-1, None] + torch.arange(first, last + 1) if fits else None
    if tokens.rows == batch and bool((lengths == length).all()):
        return tokens.starts[:-1, None] + torch.arange(length)
    end = offset + length
    whole_rows = bool(torch.isin(torch.tensor([offset, end]), tokens.starts).all())
    if batch == 1 and end <= len(tokens) and (packed or whole_rows):
        return offset + torch.arange(length)[None]
    return None


class CallsInOrder:
    """Flat positions of the calls that one site makes in a forward, as long as they are in order.

    One call may hold all rows, or some rows after the other (a tower that is run image by image),
    or a part of a packed sequence (windows). Whether all of it was seen, `complete` tells: a call
    that is shorter than the map, and stays alone, was not aligned.
    """

    def __init__(self, tokens: TowerTokens | None) -> None:
        self._tokens, self._done = tokens, 0

    @property
    def complete(self) -> bool:
        """Whether the calls so far cover every position of the map, once."""
        return self._tokens is not None and self._done == len(self._tokens)

    @property
    def seen(self) -> int:
        """Positions that calls had so far; also the flat position at which the next begins."""
        return self._done

    def next(self, batch: int, length: int) -> Tensor | None:
        """Long ``[batch length]``: flat positions of the next call, None where it does not fit."""
        tokens, first = self._tokens, self._done
        if tokens is None or first + batch * length > len(tokens):
            return None
        row = int(torch.searchsorted(tokens.starts, first, right=True)) - 1
        whole = tokens.starts[row] == first and bool(
            (tokens.lengths[row : row + batch] == length).all()
        )
        if not (batch == 1 or whole):
            return None
        self._done += batch * length
        return first + torch.arange(batch * length).view(batch, length)
