"""What a latent reads: one direction among head outputs and a number, both in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from probes.heads import Site
from probes.layout import SiteLayout
from probes.subject import Subject
from sae.coders.coder import Coder

_AFFINE = 1e-3
"""How far a pre-activation may be from ``direction . z + constant``, in units of its parts."""


@dataclass(frozen=True)
class LatentReading:
    """A latent's pre-activation as ``sum_h direction[h] . z[h] + constant``.

    Attributes:
        direction: its encoder row, head by head.
        constant: encoder bias minus what the row reads of the decoder bias, where the coder takes
            that from its input first.
    """

    latent: int
    direction: Float[Tensor, "head head_width"]
    constant: float


def wide_dtype(device: torch.device) -> torch.dtype:
    """Float64, float32 on devices that have none (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def latent_reading(coder: Coder, latent: int, heads: int) -> LatentReading:
    """What a latent of a coder reads."""
    wide = wide_dtype(coder.encoder.device)
    row = coder.encoder[latent].detach().to(wide)
    constant = coder.encoder_bias[latent].detach().to(wide)
    if coder.centred:
        constant = constant - row @ coder.decoder_bias.detach().to(wide)
    return LatentReading(latent, row.reshape(heads, -1), float(constant))


def chosen_latents(coder: Coder, latents: int | Sequence[int] | Tensor) -> list[int]:
    """The latents as a list; a tensor of whole numbers, such as of an ``argmax``, is taken too.

    Raises:
        ValueError: none, or one that the coder does not have.
    """
    given = latents.tolist() if isinstance(latents, Tensor) else latents
    try:
        chosen = [index(latent) for latent in (given if isinstance(given, Iterable) else [given])]
    except TypeError:
        raise ValueError(
            f"Latents must be whole numbers, got {latents!r}. Give their indices."
        ) from None
    if not chosen:
        raise ValueError("There must be at least one latent, got none. Name one.")
    wrong = next((latent for latent in chosen if not 0 <= latent < coder.latents), None)
    if wrong is not None:
        raise ValueError(
            f"A latent must be between 0 and {coder.latents - 1}, got {wrong}. Choose one that "
            "the coder has."
        )
    return chosen


def site_of(subject: Subject, coder: Coder, site: Site | str) -> SiteLayout:
    """The layer that a coder belongs to.

    Raises:
        ValueError: the subject has no such layer, or its heads are not as wide as the coder.
    """
    known = {str(place.site): place for place in subject.layout.sites}
    if str(site) not in known:
        raise ValueError(
            f"The site must be an attention layer of {subject.name!r}, such as "
            f"{next(iter(known), 'none')}, got {str(site)!r}. Run `headscope inspect` to list them."
        )
    place = known[str(site)]
    width = place.heads * place.value_width
    if coder.width != width:
        raise ValueError(
            f"The coder must be as wide as the heads of {site} side by side ({place.heads} x "
            f"{place.value_width} = {width}), got {coder.width}. Choose the site it was trained on."
        )
    return place


@torch.no_grad()
def strengths_at(coder: Coder, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row latent"]:
    """Strengths of all latents at rows of any dtype and device, in the coder's."""
    return coder.encode(rows.detach().to(coder.encoder.device, coder.encoder.dtype))


@torch.no_grad()
def refuse_not_affine(
    coder: Coder, reading: LatentReading, row: Float[Tensor, "width"], value: float
) -> None:
    """Nothing, if the coder's own pre-activation is what its encoder row and biases say.

    Raises:
        ValueError: a kind of coder that reads its input in another way.
    """
    own = coder.pre_activations(row.detach()[None].to(coder.encoder.device, coder.encoder.dtype))
    found = float(own[0, reading.latent])
    size = float(row.double().norm().cpu() * reading.direction.norm().cpu()) + abs(reading.constant)
    limit = _AFFINE if coder.encoder.dtype in (torch.float32, torch.float64) else 5e-2
    if not abs(found - value) <= limit * max(size, 1e-12):
        raise ValueError(
            f"The pre-activation of latent {reading.latent} must be its encoder row times the "
            f"input plus biases ({value:.4g}), {type(coder).__name__} gives {found:.4g}. It cannot "
            "be split into heads and sources."
        )
