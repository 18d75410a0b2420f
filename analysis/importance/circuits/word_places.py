"""Where the words of a batch stand, and which other word of the example is told from each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.alignment import flat_positions

if TYPE_CHECKING:
    from probes.inputs import Batch

_TEXT_ROLES = ("text", "system", "generated")


@dataclass(frozen=True)
class Places:
    """Text positions of a batch: long ``[read]`` each.

    ``other`` is another token of the same example, -1 where it has only one.
    """

    row: Tensor
    position: Tensor
    example: Tensor
    token: Tensor
    other: Tensor


def text_places(batch: Batch, tower: str, shape: Sequence[int]) -> Places:
    """The positions of a stream ``[batch position ...]`` that hold a token of text.

    Raises:
        ValueError: the token map does not say which token stands where.
    """
    rows, length = shape[:2]
    tokens = batch.tokens.towers.get(tower)
    index = flat_positions(tokens, rows, length)
    if tokens is None or index is None:
        raise ValueError(
            f"The token of every position of {tower} must be known to see what is copied, and the "
            "token map does not say."
        )
    text = tokens.has_role(*_TEXT_ROLES) & (tokens.ids >= 0)
    row, position = text[index].nonzero().T
    flat = index[row, position]
    token, example = tokens.ids[flat], tokens.example[flat]
    return Places(row, position, example, token, other_tokens(token, example))


def other_tokens(token: Tensor, example: Tensor) -> Tensor:
    """Another token of the same example for each read: the next different one, half way on."""
    other = torch.full_like(token, -1)
    for one in example.unique().tolist():
        mine = (example == one).nonzero()[:, 0]
        own = token[mine]
        candidates = own.roll(-(len(own) // 2))
        for _ in range(len(own)):
            same = candidates == own
            if not bool(same.any()):
                break
            candidates = torch.where(same, candidates.roll(-1), candidates)
        other[mine] = torch.where(candidates == own, -1, candidates)
    return other
