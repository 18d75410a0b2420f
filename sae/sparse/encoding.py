"""From rows to their strongest latents, block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.sparse.products import linear, rows_at_once
from sae.sparse.strongest import strongest


@dataclass(frozen=True)
class Strongest:
    """Raw pre-activations of some latents of each row.

    Attributes:
        values: pre-activations as they are, negative ones too.
        indices: which latent each belongs to.
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]


@dataclass(frozen=True)
class Dead:
    """What is asked of dead latents.

    Attributes:
        latents: which they are, ascending; at least one.
        k: how many of them explain a row's error together, at most all.
    """

    latents: Int[Tensor, " dead"]
    k: int


def encode(
    x: Float[Tensor, "batch width"],
    encoder: Float[Tensor, "latent width"],
    encoder_bias: Float[Tensor, " latent"],
    k: int,
    dead: Dead | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Strongest, Strongest | None]:
    """The k strongest latents of each row and, if asked, its strongest dead latents.

    All pre-activations of a block of rows are computed, searched while they are in the cache, and
    dropped. Without gradients.

    Args:
        dtype: what the products are done in; None: the type of ``encoder``. Values come back in
            that one.

    Returns:
        Of all latents; and of the dead ones, ``indices`` counting within ``dead.latents``.
    """
    found, of_dead = _Room(x, k, encoder), _Room(x, dead.k, encoder) if dead else None
    x, weight, bias = (it.to(dtype or encoder.dtype) for it in (x, encoder, encoder_bias))
    rows = rows_at_once(encoder.shape[0], x.device)
    for start in range(0, x.shape[0], rows):
        block = slice(start, start + rows)
        pre = linear(x[block], weight, bias)
        found.put(block, *strongest(pre, k))
        if dead is not None and of_dead is not None:
            candidates = pre.index_select(1, dead.latents)
            of_dead.put(block, *candidates.topk(dead.k, dim=1, sorted=False))
    return found.full(), of_dead.full() if of_dead else None


class _Room:
    """Where the findings of blocks are put."""

    def __init__(self, x: Tensor, k: int, like: Tensor) -> None:
        self.values = like.new_empty(x.shape[0], k)
        self.indices = torch.empty(x.shape[0], k, dtype=torch.long, device=x.device)

    def put(self, block: slice, values: Tensor, indices: Tensor) -> None:
        self.values[block], self.indices[block] = values, indices

    def full(self) -> Strongest:
        return Strongest(self.values, self.indices)
