"""Single rows of a pattern in float64, and what each of their keys brings along a direction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.masks import MASKED_SCORE
from sae.reading.latent_reading import wide_dtype


@torch.no_grad()
def pattern_row(call: AttentionCall, batch: int, query: int) -> Float[Tensor, "head key"]:
    """One row of the pattern of every head, after all edits, float64.

    Tiles (`AttentionCall.pattern_of`) are float32, which is less than a float64 model computes
    with. Rows that edits may have changed are taken from there all the same.
    """
    wide, rows = wide_dtype(call.device), slice(query, query + 1)
    if call.score_edits or call.pattern_edits:
        return call.pattern_of(rows)[batch, :, 0].to(wide)
    if call.whole is not None:
        return call.whole[batch, :, query].to(wide)
    assert call.query is not None and call.key is not None
    read, keys = call.query[batch, :, query], call.key[batch]
    if call.compute_dtype is not None:
        read, keys = read.to(call.compute_dtype), keys.to(call.compute_dtype)
    grouped = read.to(wide).unflatten(0, (keys.shape[0], -1)) * call.scale
    scores = torch.einsum("ngw,nkw->ngk", grouped, keys.to(wide)).flatten(0, 1)
    scores = call.mask.apply_(scores[None, :, None], slice(batch, batch + 1), rows)[0, :, 0]
    empty = scores.amax(-1, keepdim=True) <= MASKED_SCORE / 2
    return scores.softmax(-1).masked_fill(empty, 0.0)


@torch.no_grad()
def brought_by_key(
    call: AttentionCall,
    batch: int,
    query: int,
    directions: Float[Tensor, "direction head head_width"],
) -> Float[Tensor, "direction head key"]:
    """``pattern[head, key] * (value[key] . direction[head])`` at one query, float64.

    Its sum over keys is ``z[head] . direction[head]``; where a learned sink takes a share of the
    row, that share brings nothing, and the sum is the same.
    """
    pattern = pattern_row(call, batch, query)
    value = call.value[batch].detach().to(pattern.dtype)
    wanted = directions.to(pattern.device, pattern.dtype).unflatten(1, (value.shape[0], -1))
    along = torch.einsum("dngw,nkw->dngk", wanted, value).flatten(1, 2)
    # A key that may not be read brings nothing, whatever a padded value holds.
    return torch.where(pattern == 0, torch.zeros_like(along), pattern * along)
