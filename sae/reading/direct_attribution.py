"""Which heads and which source tokens or patches make a latent fire, as an exact sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.layout import SiteLayout
from probes.listening import listen
from probes.replay import logits_unread
from probes.tap import TapError
from sae.coders.coder import Coder
from sae.reading.destinations import (
    Destination,
    flat_destinations,
    key_positions,
    places_in,
    unknown_positions,
)
from sae.reading.latent_reading import (
    LatentReading,
    chosen_latents,
    latent_reading,
    refuse_not_affine,
    site_of,
    strengths_at,
)
from sae.reading.pattern_rows import brought_by_key
from sae.reading.sources import Sources

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_HALF_TOLERANCE = 5e-2


@dataclass(frozen=True)
class DirectAttribution:
    """One latent at one destination as a sum over heads and sources.

    ``pre_activation = constant + sum(joint)``; `by_head` and `by_source` are sums of `joint`.
    Everything is float64, whatever the model computes with.

    Attributes:
        destination: flat position in the token map of the site's tower.
        joint: what each head brings from each source: pattern times the part of the value that
            the encoder row reads.
        constant: encoder bias, minus what is read of the decoder bias: belongs to no source.
        pre_activation: what the activation function decides upon, from the model's own z.
        strength: activation there, 0 where the latent does not fire.
        mismatch: ``|pre_activation - constant - sum(joint)|`` in units of ``sum |joint|``: the
            model's rounding.
    """

    site: Site
    latent: int
    destination: int
    joint: Float[Tensor, "head source"] = field(repr=False)
    constant: float
    pre_activation: float
    strength: float
    sources: Sources
    mismatch: float = 0.0

    @property
    def active(self) -> bool:
        """Whether the latent fires at the destination; if not, the sum explains why it does not."""
        return self.strength != 0

    @property
    def by_head(self) -> Float[Tensor, "head"]:
        """What each head brings, from all sources."""
        return self.joint.sum(1)

    @property
    def by_source(self) -> Float[Tensor, "source"]:
        """What comes from each source, by all heads."""
        return self.joint.sum(0)


def direct_attribution(
    subject: Subject,
    batch: Batch,
    coder: Coder,
    site: Site | str,
    latents: int | Sequence[int],
    destinations: Destination | Sequence[Destination],
) -> list[DirectAttribution]:
    """Direct feature attribution: a latent's pre-activation by head and by source.

    With the pattern frozen, ``pre(t) = constant + sum_h sum_s A[h, t, s] (v[s, h] . w[h])``, w the
    encoder row. Exact, also with shared key and value heads, value biases (part of v), learned
    sinks and cross attention. Memory: one row of the pattern at a time.

    Args:
        coder: of the concatenated head outputs of ``site``.
        destinations: one or several; of `Destination`.

    Returns:
        One per destination and latent, latents of the same destination one after the other.

    Raises:
        ValueError: a site, latent or destination that there is not, a coder of another width.
        TapError: the input does not reach the site, the positions of its calls are not known, or
            z is not what pattern and values give (an edit changes it there).

    Source: Kissane et al. 2024 (arXiv 2406.17759), section 2 and their released notebook.
    """
    place = site_of(subject, coder, site)
    chosen = chosen_latents(coder, latents)
    wanted = flat_destinations(batch, place.site, destinations)
    found = attributed(subject, batch, coder, place, dict.fromkeys(wanted, chosen))
    return [one for flat in wanted for one in found[flat]]


def attributed(
    subject: Subject,
    batch: Batch,
    coder: Coder,
    place: SiteLayout,
    wanted: Mapping[int, Sequence[int]],
) -> dict[int, list[DirectAttribution]]:
    """`direct_attribution` of other latents at each destination.

    Args:
        wanted: latents by flat position in the token map of the site's tower.
    """
    latents = dict.fromkeys(latent for some in wanted.values() for latent in some)
    readings = {latent: latent_reading(coder, latent, place.heads) for latent in latents}
    found: dict[int, list[DirectAttribution]] = {}

    def hear(call: AttentionCall) -> None:
        for row, query, flat in places_in(call, list(wanted)):
            here = [readings[latent] for latent in wanted[flat]]
            found[flat] = attributions_at(call, row, query, flat, coder, here, batch, place)

    settings = logits_unread(subject, batch)
    with listen(subject, batch, hear, [place.site]):
        subject.forward(batch, **settings)
    lost = [flat for flat in wanted if flat not in found]
    if lost:
        raise TapError(unknown_positions(place.site, lost))
    return found


def attributions_at(
    call: AttentionCall,
    row: int,
    query: int,
    destination: int,
    coder: Coder,
    readings: Sequence[LatentReading],
    batch: Batch,
    place: SiteLayout,
) -> list[DirectAttribution]:
    """Attributions of several latents at one query of a call.

    Raises:
        TapError: z is not what pattern and values give.
        ValueError: a pre-activation is not affine in z.
    """
    directions = torch.stack([reading.direction for reading in readings])
    joint = brought_by_key(call, row, query, directions).cpu()
    z = call.z[row, :, query].detach()
    strengths = strengths_at(coder, z.reshape(1, -1))[0].cpu()
    wide = torch.einsum("dhw,hw->d", directions.cpu(), z.to("cpu", directions.dtype))
    tower, index = key_positions(call, row, place)
    sources = Sources(tower, index, batch.tokens)
    limit = tolerance_of(call)
    found = []
    for number, reading in enumerate(readings):
        value = float(wide[number])
        size = float(joint[number].abs().sum()) or 1.0
        mismatch = abs(value - float(joint[number].sum())) / size
        if not mismatch <= limit:
            raise TapError(
                f"z of {call.site} must be what its pattern and values give, it differs by "
                f"{mismatch:.1e}. Take edits of z away from this layer while it is attributed."
            )
        pre = value + reading.constant
        refuse_not_affine(coder, reading, z.flatten(), pre)
        found.append(
            DirectAttribution(
                call.site,
                reading.latent,
                destination,
                joint[number],
                reading.constant,
                pre,
                float(strengths[reading.latent]),
                sources,
                mismatch,
            )
        )
    return found


def tolerance_of(call: AttentionCall) -> float:
    """How far sums over sources may be from z, in units of all that is summed."""
    if call.compute_dtype is not None:
        return _HALF_TOLERANCE
    return _TOLERANCE.get(call.z.dtype, _HALF_TOLERANCE)
