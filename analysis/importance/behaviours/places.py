"""Which positions of a tower stand for an example: the end of its prompt, its text, or all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.importance.replacements import positions_of
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.heads import Site
    from probes.inputs import Batch

Where = Literal["last", "text", "all"]
WHERE = ("last", "text", "all")
LAST = 4
_TEXT = ("text", "system", "generated")
_PAD = ROLES.index("pad")
_IDS = {"language": "input_ids", "decoder": "decoder_input_ids"}


def places(
    batch: Batch, site: Site, z: Tensor, where: Where = "last", last: int = LAST
) -> tuple[Tensor, Tensor]:
    """Bool ``[batch query]``: positions that count; long ``[batch query]``: example of each.

    ``last`` are the last ``last`` positions of the prompt (before the answer where one is given),
    ``text`` those of words, ``all`` every real one. In a tower without text all count. Windows and
    packed images are laid out by the token map; where there is none, all positions count.

    Raises:
        ValueError: the positions cannot be told apart, or an example has none that counts.
    """
    index = positions_of(batch, site, z)
    if index is None:
        if z.shape[0] != batch.size:
            raise ValueError(
                f"The positions of {site} must be known example by example, and its "
                f"{z.shape[0]} rows for {batch.size} examples do not fit the token map. "
                f"Leave tower {site.tower!r} out."
            )
        example = torch.arange(batch.size)[:, None].expand(z.shape[:2])
        return torch.ones_like(example, dtype=torch.bool), example
    tokens = batch.tokens[site.tower]
    role, example = tokens.role[index], tokens.example[index]
    counted = (role != _PAD) & (example >= 0)
    if bool(tokens.has_role(*_TEXT).any()):
        if where == "text":
            counted &= tokens.has_role(*_TEXT)[index]
        elif where == "last":
            counted &= _before_answer(batch, tokens, index)
            from_end = counted.flip(1).cumsum(1).flip(1)
            counted &= from_end <= last
    missing = sorted(set(range(batch.size)) - set(example[counted].tolist()))
    if missing:
        raise ValueError(
            f"Example {batch.examples[missing[0]].id!r} must have a position of {site.tower} that "
            f"counts ({where}), it has none. Leave it out, or choose another of "
            f"{', '.join(WHERE)}."
        )
    return counted, example


def example_means(values: Tensor, counted: Tensor, example: Tensor, examples: int) -> Tensor:
    """Float64 ``[example ...]``: mean of ``values [batch query ...]`` over what counts."""
    kept = counted.flatten().to(values.device)
    owner = example.flatten().to(values.device)[kept]
    rows = values.flatten(0, 1)[kept].double()
    total = rows.new_zeros(examples, *rows.shape[1:]).index_add_(0, owner, rows)
    count = torch.bincount(owner, minlength=examples).double()
    return total / count.reshape(-1, *[1] * (total.ndim - 1))


def _before_answer(batch: Batch, tokens: TowerTokens, index: Tensor) -> Tensor:
    """Bool ``[batch query]``: before the example's answer; everywhere where there is none."""
    before = torch.ones(index.shape, dtype=torch.bool)
    ids = batch.tensors.get(_IDS.get(tokens.tower, ""))
    if not batch.answer_starts or not isinstance(ids, Tensor) or ids.shape != index.shape:
        return before
    for row, start in enumerate(batch.answer_starts):
        if start >= 0:
            before[row, start:] = False
    return before
