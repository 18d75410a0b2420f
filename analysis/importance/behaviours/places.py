"""Which positions of a tower stand for an example: its prompt's end, its answer, text, or all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.importance.replacements import positions_of
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.heads import Site
    from probes.inputs import Batch

Where = Literal["last", "answer", "text", "all"]
WHERE = ("last", "answer", "text", "all")
LAST = 4
_TEXT = ("text", "system", "generated")
_PAD = ROLES.index("pad")
_IDS = {"language": "input_ids", "decoder": "decoder_input_ids"}


def places(
    batch: Batch,
    site: Site,
    z: Tensor,
    where: Where = "last",
    last: int = LAST,
    *,
    may_miss: bool = False,
) -> tuple[Tensor, Tensor]:
    """Bool ``[batch query]``: positions that count; long ``[batch query]``: example of each.

    ``last`` are the last ``last`` positions of the prompt (before the answer where one is given),
    ``text`` those of words, ``all`` every real one. In a tower without text all count. Windows and
    packed images are laid out by the token map; in a tower that has none, all positions count.

    Args:
        may_miss: whether an example may have no position that counts.

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
        if where != "all" and site.tower in batch.tokens and _has_text(batch.tokens[site.tower]):
            raise ValueError(
                f"The positions of {site} must be those of the token map to tell which count "
                f"({where}), and its {z.shape[1]} do not fit it. Choose `all`."
            )
        example = torch.arange(batch.size)[:, None].expand(z.shape[:2])
        return torch.ones_like(example, dtype=torch.bool), example
    tokens = batch.tokens[site.tower]
    role, example = tokens.role[index], tokens.example[index]
    counted = (role != _PAD) & (example >= 0)
    if _has_text(tokens):
        if where == "text":
            counted &= tokens.has_role(*_TEXT)[index]
        elif where == "last":
            counted &= _before_answer(batch, tokens, index)
            from_end = counted.flip(1).cumsum(1).flip(1)
            counted &= from_end <= last
        elif where == "answer":
            counted &= _predicting_answer(batch, tokens, counted)
    missing = sorted(set(range(batch.size)) - set(example[counted].tolist()))
    if missing and not may_miss:
        raise ValueError(
            f"Example {batch.examples[missing[0]].id!r} must have a position of {site.tower} that "
            f"counts ({where}), it has none. Leave it out, or choose another of "
            f"{', '.join(WHERE)}."
        )
    return counted, example


def usual_places(batches: Sequence[Batch], tower: str) -> Where:
    """``answer`` where a tower writes one for every example, else ``last``; ``all`` if no text."""
    if not all(tower in batch.tokens and _has_text(batch.tokens[tower]) for batch in batches):
        return "all"
    starts = [start for batch in batches for start in batch.answer_starts or (-1,)]
    return "answer" if tower in _IDS and all(start >= 0 for start in starts) else "last"


def example_means(values: Tensor, counted: Tensor, example: Tensor, examples: int) -> Tensor:
    """Float64 ``[example ...]``: mean of ``values [batch query ...]`` over what counts."""
    kept = counted.flatten().to(values.device)
    owner = example.flatten().to(values.device)[kept]
    rows = values.flatten(0, 1)[kept].double()
    total = rows.new_zeros(examples, *rows.shape[1:]).index_add_(0, owner, rows)
    count = torch.bincount(owner, minlength=examples).double()
    return total / count.reshape(-1, *[1] * (total.ndim - 1))


def _has_text(tokens: TowerTokens) -> bool:
    return bool(tokens.has_role(*_TEXT).any())


def _before_answer(batch: Batch, tokens: TowerTokens, index: Tensor) -> Tensor:
    """Bool ``[batch query]``: before the example's answer; everywhere where there is none."""
    before = torch.ones(index.shape, dtype=torch.bool)
    for row, start in _answer_starts(batch, tokens, index.shape):
        before[row, start:] = False
    return before


def _predicting_answer(batch: Batch, tokens: TowerTokens, real: Tensor) -> Tensor:
    """Bool ``[batch query]``: what is read to predict the answer, the position before included."""
    if tokens.tower not in _IDS:
        raise ValueError(
            f"The answer must be predicted by the tower whose heads are read, and {tokens.tower} "
            f"does not ({' and '.join(_IDS)} do). Choose another of {', '.join(WHERE)}."
        )
    found = torch.zeros(real.shape, dtype=torch.bool)
    for row, start in _answer_starts(batch, tokens, real.shape):
        end = int(real[row].nonzero()[-1, 0])  # its last token predicts nothing that is known
        found[row, max(start - 1, 0) : end] = True
    return found


def _answer_starts(
    batch: Batch, tokens: TowerTokens, shape: torch.Size
) -> Iterator[tuple[int, int]]:
    """Row and first position of every answer that a tower reads."""
    name = _IDS.get(tokens.tower)
    starts = [(row, start) for row, start in enumerate(batch.answer_starts) if start >= 0]
    if name is None or not starts:
        return
    ids = batch.tensors.get(name)
    if not isinstance(ids, Tensor) or ids.shape != shape:
        raise ValueError(
            f"The answer of example {batch.examples[starts[0][0]].id!r} must be found among the "
            f"positions of {tokens.tower}, and {list(shape)} of these do not fit its `{name}`. "
            "Choose `all`, or leave the answers out."
        )
    yield from starts
