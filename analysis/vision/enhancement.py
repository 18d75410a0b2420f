"""Stage B of GIFT on rows of attention: the image louder, the question with it, sums kept.

See `analysis.vision.methods.gift` for the source and for what differs from it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def enhanced(values: Tensor, features: Tensor, edited: Tensor, beta: float = 1.0) -> Tensor:
    """New rows for rows ``[batch head row key]`` of all heads of a layer; rows keep their sums.

    Args:
        features: float ``[batch key 3]``: 1 at the image, ``exp(alpha s) - 1`` there, and 1 at the
            question.
        edited: bool ``[batch row]``: rows that are changed; the others come back bit for bit.
    """
    seen, grown, asked = (values @ features[:, None]).unbind(-1)  # [batch head row]
    of_image, of_question = _upper_half(seen), _upper_half(asked)
    before = (seen * of_image).sum(1, keepdim=True)
    gain = (grown * of_image).sum(1, keepdim=True)
    moves = edited[:, None] & (gain > 0)
    # A flat map gains nothing: its rows stay as they are, whatever beta.
    ratio = torch.where(moves, beta * (1 + gain / before.clamp_min(1e-30)), 1.0)
    louder = torch.where(moves, of_image.to(values.dtype), 0.0)
    nearer = (ratio - 1) * of_question
    total = values.sum(-1)
    scale = total / (total + louder * grown + nearer * asked).clamp_min(1e-30)
    scale = torch.where(moves, scale, 1.0)
    change = torch.stack([louder, nearer], dim=-1) @ features[:, None, :, 1:].transpose(-1, -2)
    return values * ((1 + change) * scale[..., None])


def _upper_half(weights: Tensor) -> Tensor:
    """Bool ``[batch head row]``: the half of the heads with the largest weights, at least one."""
    chosen = weights.topk(max(1, weights.shape[1] // 2), dim=1).indices
    return torch.zeros_like(weights, dtype=torch.bool).scatter(1, chosen, True)
