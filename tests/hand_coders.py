"""Coders whose parameters are written down, so that what they make of rows is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.standard import Standard
from sae.coders.topk import TopK


def written(
    encoder: Sequence[Sequence[float]] | Tensor,
    decoder: Sequence[Sequence[float]] | Tensor,
    encoder_bias: Sequence[float] | Tensor | None = None,
    decoder_bias: Sequence[float] | Tensor | None = None,
    *,
    centred: bool = False,
) -> Coder:
    """ReLU with these matrices ``[latent width]``."""
    rows = torch.as_tensor(encoder, dtype=torch.float32)
    coder = Standard(rows.shape[1], rows.shape[0], centred=centred)
    given: dict[str, Any] = {
        "encoder": rows,
        "decoder": decoder,
        "encoder_bias": torch.zeros(rows.shape[0]) if encoder_bias is None else encoder_bias,
        "decoder_bias": torch.zeros(rows.shape[1]) if decoder_bias is None else decoder_bias,
    }
    with torch.no_grad():
        for name, value in given.items():
            getattr(coder, name).copy_(torch.as_tensor(value, dtype=torch.float32))
    return coder.eval().requires_grad_(False)


def identity(width: int, site: str = "", *, seed: int = 0, factor: float = 1.0) -> TopK:
    """An orthonormal basis and its negative: every row is reconstructed, times ``factor``."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    coder = TopK(width, 2 * width, k=width)
    with torch.no_grad():
        coder.decoder.copy_(torch.cat([basis, -basis]))
        coder.encoder.copy_(factor * coder.decoder)
        coder.decoder_bias.zero_()
    if site:
        coder.about = {"site": site}
    return coder.eval().requires_grad_(False)


def nothing(width: int, site: str = "") -> TopK:
    """Reconstructs 0 whatever it is given."""
    coder = identity(width, site)
    coder.decoder.data.zero_()
    return coder
