"""What heads wrote, split into the features of their layer's coder and what it leaves over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Coder
from sae.reading.latent_reading import wide_dtype


@dataclass(frozen=True)
class FeatureSplit:
    """A number read off z, ``sum(z * gradient)``, as a sum over active latents and the rest.

    Attributes:
        scores: of each of ``latents``.
        bias: of the coder's decoder bias.
        error: of what the coder does not reconstruct.
    """

    latents: list[int]
    scores: list[float]
    bias: float
    error: float


@torch.no_grad()
def split_into_features(
    coder: Coder,
    z: Float[Tensor, "head head_width"],
    gradient: Float[Tensor, "head head_width"],
) -> FeatureSplit:
    """``strength * (decoder row . gradient)`` of each active latent, bias and error."""
    wide = wide_dtype(coder.decoder.device)
    row = z.reshape(1, -1).to(coder.encoder.device, coder.encoder.dtype)
    strengths = coder.encode(row)[0]
    latents = strengths.nonzero()[:, 0]
    read = gradient.flatten().to(coder.decoder.device, wide)
    scores = strengths[latents].to(wide) * (coder.decoder[latents].to(wide) @ read)
    bias = float(coder.decoder_bias.to(wide) @ read)
    whole = float(z.flatten().to(read) @ read)
    return FeatureSplit(latents.tolist(), scores.tolist(), bias, whole - bias - float(scores.sum()))


def read_by_feature(
    coder: Coder, z: Float[Tensor, "head head_width"], latent: int, score: float
) -> tuple[Float[Tensor, "head head_width"], float]:
    """How a feature's score moves with z while the same latents fire: ``direction . z + constant``.

    Strengths are piecewise linear in z, so this is exact where the row lies.

    Raises:
        ValueError: the coder gives no gradient, or its strength is not affine there.
    """
    wide = wide_dtype(coder.encoder.device)
    with torch.inference_mode(False), torch.enable_grad():
        row = z.reshape(1, -1).detach().to(coder.encoder.device, coder.encoder.dtype)
        row = row.clone().requires_grad_(True)
        strength = coder.encode(row)[0, latent]
        slope = None
        if strength.requires_grad:
            (slope,) = torch.autograd.grad(strength, row, allow_unused=True)
    if slope is None:
        raise ValueError(
            f"{type(coder).__name__} must let gradients through to its input, it does not. Leave "
            "its layer out of `coders`."
        )
    value, wide_slope = float(strength.detach()), slope[0].to(wide)
    factor = score / value
    constant = score - factor * float(wide_slope @ row.detach()[0].to(wide))
    return (factor * wide_slope).reshape(z.shape).to(z.device), constant
