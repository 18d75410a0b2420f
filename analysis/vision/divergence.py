"""How far heads' outputs move when the image goes: Visual-aware Head Divergence, by arithmetic.

He et al., *Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence* (2024,
arXiv 2412.13949), equations 2 to 7. A head's output is ``z``, before the output projection. Axes
before ``head`` are free: reads, examples, layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOP_SHARE = 4
"""T-VHD adds up a quarter of each layer's heads unless told otherwise: 8 of 32. The paper does not
say how many; a port of it takes 8."""


def divergence(seen: Tensor, unseen: Tensor) -> Tensor:
    """VHD: ``||z - z'||`` of ``[... head width]`` with and without the image, 0 and up."""
    return torch.linalg.vector_norm(_wide(seen) - _wide(unseen), dim=-1)


def activation(unseen: Tensor) -> Tensor:
    """TA: the squared norm ``||z'||^2`` of what a head gives out without the image."""
    return _wide(unseen).square().sum(-1)


def relative_divergence(seen: Tensor, unseen: Tensor) -> Tensor:
    """``||z - z'|| / ||z||``: VHD in units of the head's own output with the image.

    A head of large norm does not stand out for its size. NaN where z is zero.
    """
    size = torch.linalg.vector_norm(_wide(seen), dim=-1)
    return torch.where(size > 0, divergence(seen, unseen) / size, torch.nan)


def cosine_divergence(seen: Tensor, unseen: Tensor) -> Tensor:
    """``1 - cos(z, z')``, 0 to 2: whether the direction moved, which is all that a norm behind the
    block lets through. NaN where either is zero.
    """
    one, other = _wide(seen), _wide(unseen)
    sizes = torch.linalg.vector_norm(one, dim=-1) * torch.linalg.vector_norm(other, dim=-1)
    cosine = (torch.linalg.vecdot(one, other) / sizes).clamp(-1.0, 1.0)
    return torch.where(sizes > 0, 1 - cosine, torch.nan)


def outliers(vhd: Tensor, unseen_activation: Tensor) -> Tensor:
    """Bool ``[... head]``: heads of a layer that diverge because they flare up without the image.

    Both must exceed mean + std over the heads of the layer. Such a head is one that the image
    quietens, so it should not be amplified. The standard deviation is the sample's (divided by
    heads - 1), as torch computes it by default; the paper does not say which. A layer of one or
    two heads has no outliers under it.

    Args:
        vhd, unseen_activation: ``[... head]`` of one layer each, from `divergence` and
            `activation`.
    """
    return _stands_out(vhd) & _stands_out(unseen_activation)


def without_outliers(vhd: Tensor, unseen_activation: Tensor) -> Tensor:
    """VHD with that of `outliers` set to 0."""
    return vhd.masked_fill(outliers(vhd, unseen_activation), 0.0)


def vision_aware(vhd: Tensor) -> Tensor:
    """Bool ``[... head]``: H_l, the heads of a layer strictly above the median of their layer.

    Half of an even number of heads, (heads - 1) / 2 of an odd one, fewer where heads tie with the
    median, none where all are equal. Give `without_outliers`: the median is taken after it. For
    an even number the lower of the two middle values serves as well as their mean, as no head
    lies between them.
    """
    return vhd > vhd.median(-1, keepdim=True).values


def token_divergence(layers: Sequence[Tensor], k: int | None = None) -> Tensor:
    """T-VHD: for each read the ``k`` largest VHD of every layer, added up over layers.

    A sum, not a mean: it grows with the number of layers.

    Args:
        layers: ``[... head]`` for each layer; they may differ in heads.
        k: heads per layer; more than a layer has means all of them. Default: see `TOP_SHARE`.

    Raises:
        ValueError: ``k`` is less than 1, or there is no layer.
    """
    if not layers:
        raise ValueError("T-VHD must have at least one layer to add up, got none.")
    if k is not None and k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    total = torch.zeros(layers[0].shape[:-1], dtype=torch.float64, device=layers[0].device)
    for vhd in layers:
        heads = vhd.shape[-1]
        taken = top_heads(heads) if k is None else min(k, heads)
        total += vhd.double().topk(taken, dim=-1).values.sum(-1)
    return total


def top_heads(heads: int) -> int:
    """How many heads of a layer T-VHD adds up by default.

    >>> [top_heads(heads) for heads in (32, 8, 3)]
    [8, 2, 1]
    """
    return max(1, heads // TOP_SHARE)


def _stands_out(values: Tensor) -> Tensor:
    values = _wide(values)
    if values.shape[-1] < 2 or not values.numel():
        return torch.zeros_like(values, dtype=torch.bool)
    return values > values.mean(-1, keepdim=True) + values.std(-1, keepdim=True)


def _wide(values: Tensor) -> Tensor:
    """At least float32: differences of half precision lose what is to be measured."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
