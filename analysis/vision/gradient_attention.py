"""Which image positions a prompt's decision hangs on: attention weighted by its gradient.

For each image position j, over layers, heads and the queries i of the prompt behind the image,

    G_j = mean of  A_ij max(d y / d A_ij, 0)

where y is the log-probability of the token that the model itself would write next. It is Grad-CAM
on attention, as Chefer et al. (2021) and AGLA (An et al., 2024, arXiv 2406.12718) use it; AGLA
takes the gradient of another model's image-text matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.estimates.attention_gradients import pattern_gradient
from analysis.vision.prompt_parts import prompt_parts
from probes.gradients import z_gradients
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


def gradient_attention(subject: Subject, batch: Batch, sites: Sequence[Site]) -> Tensor:
    """Float32 ``[position]``: G of every image position of a batch, in one forward and backward.

    Args:
        sites: layers of one tower of the language model.
    """
    tower = sites[0].tower
    tokens = batch.tokens[tower]
    parts = prompt_parts(tokens, batch)
    asking = parts.after | parts.deciding
    deciding = parts.deciding.reshape(tokens.rows, -1).long().argmax(-1)

    def best(output: Any) -> Tensor:
        logits = output.logits
        offset = int(tokens.lengths[0]) - logits.shape[1]
        row = logits[torch.arange(len(logits)), deciding.to(logits.device) - offset]
        return row.float().log_softmax(-1).amax(-1)

    settings: dict[str, Any] = {}
    first = int(deciding.min())
    if "logits_to_keep" in subject.arguments.names:
        settings["logits_to_keep"] = int(tokens.lengths[0]) - first
    found = z_gradients(subject, batch, best, sites=sites, calls=True, settings=settings)
    total = torch.zeros(len(tokens))
    for site in sites:
        for call, gradient in found.by_call(site):
            assert call.query_index is not None and call.key_index is not None
            heads = call.heads
            for tile in call.tiles():
                asks = asking[call.query_index[tile.batch][:, tile.rows].cpu()].to(call.device)
                weighted = tile.pattern * pattern_gradient(tile, gradient).clamp_min(0)
                weighted = weighted.mul_(asks[:, None, :, None].float()).sum((1, 2)) / heads
                index = call.key_index[tile.batch][:, : tile.keys].cpu()
                total.index_add_(0, index.flatten(), weighted.flatten().cpu())
    rows = torch.zeros(tokens.rows).index_add_(0, _row_of(tokens), asking.float())
    mean = total / (len(sites) * rows[_row_of(tokens)].clamp_min(1))
    return mean[tokens.has_role("image")]


def _row_of(tokens: Any) -> Tensor:
    return torch.arange(tokens.rows).repeat_interleave(tokens.lengths)
