"""Resampling: dead latents begin again at rows that are reconstructed badly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.coders.coder import Coder

_ENCODER_SHARE = 0.2
_MOST_CHOICES = 2**24


@dataclass(frozen=True)
class Resampled:
    """What became of dead latents.

    Attributes:
        renewed: how many begin again.
        left: how many stay dead, because there were fewer rows than dead latents.
    """

    renewed: int
    left: int


@torch.no_grad()
def resample(
    coder: Coder,
    optimiser: torch.optim.Optimizer | None,
    rows: Float[Tensor, "row width"],
    dead: Bool[Tensor, " latent"],
    *,
    seed: int = 0,
    batch_size: int = 4_096,
) -> Resampled:
    """Give dead latents the directions of rows drawn by how badly they are reconstructed.

    Rows are drawn without replacement, ``p ∝ |x - x̂|⁴`` (the loss squared). The decoder row becomes
    the unit vector along ``x - decoder_bias``, the encoder row 0.2 times the mean norm of live
    encoder rows along the same (of all rows where none lives), biases and thresholds those of the
    start, and the optimiser's moments of these latents 0. Where fewer rows can be drawn than
    latents are dead, the rest stays dead until the next time.

    Args:
        optimiser: whose moments are set to 0; None: none are.
        rows: as the coder reads them, at best many more than dead latents.
        seed: of the draw.
        batch_size: rows that are reconstructed at a time.

    Source: Bricken et al. 2023 (Towards Monosemanticity, appendix), Kissane et al. 2024.
    """
    which = dead.nonzero().squeeze(1)
    rows = rows[:_MOST_CHOICES]
    if not which.numel() or not rows.shape[0]:
        return Resampled(0, which.numel())
    directions = rows.to(coder.decoder) - coder.decoder_bias
    lengths = directions.norm(dim=1)
    parts = rows.to(coder.decoder).split(batch_size)
    losses = torch.cat([(part - coder(part)).pow(2).sum(1) for part in parts])
    # In float64 and of the largest: fourth powers of errors leave the range of float32.
    exact = losses.cpu().double()
    chances = (exact / exact.amax().clamp_min(1e-300)).pow(2) * (lengths > 0).cpu()
    count = min(which.numel(), int((chances > 0).sum()))
    if not count:
        return Resampled(0, which.numel())
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(chances, count, generator=generator).to(which.device)
    alive = coder.encoder[~dead] if bool((~dead).any()) else coder.encoder
    which = which[:count]
    coder.restart(
        which,
        directions[drawn] / lengths[drawn, None],
        _ENCODER_SHARE * alive.norm(dim=1).mean().item(),
    )
    if optimiser is not None:
        _forget(coder, optimiser, which)
    return Resampled(count, int(dead.sum()) - count)


def _forget(coder: Coder, optimiser: torch.optim.Optimizer, which: Tensor) -> None:
    for name, parameter in coder.named_parameters():
        # A width may equal the number of latents: the bias of the output is no row per latent.
        if name == "decoder_bias" or parameter.shape[0] != coder.latents:
            continue
        for kept in optimiser.state.get(parameter, {}).values():
            if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                kept[which] = 0.0
