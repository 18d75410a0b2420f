"""The strongest latents of a batch instead of those of each row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.sparse.encoding import Dead, Strongest, encode

_ROOM = 4
"""How many times k candidates of a row are looked at first; few rows need more."""


def encode_over_batch(
    x: Float[Tensor, "batch width"],
    encoder: Float[Tensor, "latent width"],
    encoder_bias: Float[Tensor, " latent"],
    k: int,
    dead: Dead | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Strongest, Strongest | None]:
    """The ``k · batch`` largest positive pre-activations of the batch, as `encode` gives those of
    rows: side by side, with values of 0 where a row has fewer.

    Each row's strongest few are candidates. A row whose weakest candidate was chosen may have more
    to give: it is looked at again, with twice as many, until none is left; so what is found is what
    a search through the whole matrix finds.
    """
    latents = encoder.shape[0]
    room = min(_ROOM * k, latents)
    found, of_dead = encode(x, encoder, encoder_bias, room, dead, dtype)
    values, indices = found.values.relu_(), found.indices
    while True:
        chosen = _largest(values, k * x.shape[0])
        again = chosen.all(1).nonzero().squeeze(1)
        if room == latents or not again.numel():
            break
        room = min(2 * room, latents)
        more, _ = encode(x[again], encoder, encoder_bias, room, None, dtype)
        wider = values.new_zeros(x.shape[0], room), indices.new_zeros(x.shape[0], room)
        for wide, old, new in zip(
            wider, (values, indices), (more.values.relu_(), more.indices), strict=True
        ):
            wide[:, : old.shape[1]] = old
            wide[again] = new
        values, indices = wider
    most = int(chosen.sum(1).max()) if chosen.numel() else 0
    kept = (values * chosen).topk(max(most, 1), dim=1, sorted=False)
    return Strongest(kept.values, indices.gather(1, kept.indices)), of_dead


def _largest(values: Float[Tensor, "batch room"], most: int) -> Bool[Tensor, "batch room"]:
    """Which are among the largest; only positive ones."""
    positive = values > 0
    if int(positive.sum()) <= most:
        return positive
    chosen = torch.zeros_like(positive)
    chosen.view(-1)[values.flatten().topk(most, sorted=False).indices] = True
    return chosen
