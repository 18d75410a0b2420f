"""The residual stream after a tower's first block of attention, on data or for single words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes import operations as ops
from probes.edits.apply import edit
from probes.edits.scale import zero
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


def first_site(subject: Subject, tower: str) -> Site:
    """The first attention layer of a tower."""
    return next(iter(subject.towers[tower].sites.values())).site


def stream_after_first_block(subject: Subject, batch: Batch, tower: str) -> Tensor:
    """``[batch position model_width]``: what the first block of attention gave out.

    Raises:
        ValueError: the block is not known, or gives out something else.
    """
    site = first_site(subject, tower)
    block = subject.layout.anatomy.blocks.get(site)
    if block is None:
        raise ValueError(
            f"The block around {site} must be known to read the residual stream after it, and "
            "was not found."
        )
    seen: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        seen.extend(t.detach() for t in list(ops.tensors_in(output))[:1])

    handle = subject.model.get_submodule(block.path).register_forward_hook(keep)
    try:
        subject.forward(batch)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].ndim != 3:
        raise ValueError(
            f"{block.path} must give out one tensor [batch position model_width] per forward, got "
            f"{[list(t.shape) for t in seen]}."
        )
    return seen[0]


def effective_embedding(subject: Subject, tower: str, words: Tensor) -> Tensor:
    """``[word model_width]``: each word's embedding plus what the first MLP makes of it.

    The first block runs on the word alone with its heads at zero: ``W_E + MLP_0(norm(W_E))``, in
    the second place of the word said twice, since first positions are often special.
    """
    ids = words.cpu()[:, None].expand(-1, 2).contiguous()
    batch = subject.prepare(input_ids=ids, attention_mask=torch.ones_like(ids))
    with edit(subject, zero(str(first_site(subject, tower)))):
        return stream_after_first_block(subject, batch, tower)[:, 1]
