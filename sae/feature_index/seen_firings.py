"""A second pass over the data: what stands around chosen firings, and what brought them about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probes.tap import TapError
from sae.activations.places import PlacedActivations, PlacedChunk
from sae.coders.coder import Coder
from sae.reading.direct_attribution import DirectAttribution, attributed
from sae.reading.feature_examples import Firing, rows_at_once
from sae.reading.latent_reading import site_of
from sae.reading.windows import Window, flat_places, refuse_other, window_at

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

MOST_PLACES = 64
"""Of one input, at how many of its positions the strength of a latent is kept."""
_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class SeenFiring:
    """A firing with its surroundings.

    Attributes:
        fired: positions of the same input at which the latent fires, and how strongly; the
            strongest `MOST_PLACES`, strongest first.
        direct: its heads and sources; None where that was not asked for.
        member: which example of its batch it is in.
    """

    firing: Firing
    window: Window
    fired: tuple[tuple[int, float], ...]
    direct: DirectAttribution | None = field(repr=False)
    member: int = 0


class SecondPass:
    """Goes through the data once more, batch by batch, for the firings that were chosen.

    Attributes:
        no_attribution: why firings were not split into heads and sources; empty if they were.
    """

    def __init__(
        self,
        subject: Subject,
        activations: PlacedActivations,
        coder: Coder,
        site: str,
        firings: Sequence[Firing],
        attribute: Collection[Firing],
        reached: Callable[[int], None] = lambda examples: None,
    ) -> None:
        """
        Args:
            attribute: those of the firings that are split into heads and sources.
            reached: told how many examples are done.
        """
        self.no_attribution = ""
        self._subject, self._activations, self._coder = subject, activations, coder
        self._site, self._place = site, site_of(subject, coder, site)
        self._attribute, self._reached = set(attribute), reached
        self._by_example: dict[int, list[Firing]] = defaultdict(list)
        for one in firings:
            refuse_other(one, activations)
            self._by_example[one.index].append(one)

    def __iter__(self) -> Iterator[tuple[Batch, list[SeenFiring]]]:
        """Each batch that has some of the firings, with them."""
        left = {(one.index, one.position) for some in self._by_example.values() for one in some}
        examples = len(self._by_example)
        for chunk in self._activations.placed_chunks(0):
            here = flat_places(chunk, self._site, left) if left else {}
            if not left:
                break
            if not here:
                continue
            if chunk.batch is None:
                raise ValueError(
                    "An index of features needs the inputs themselves, this stream was read from "
                    "a disk. Give the activations of the subject."
                )
            left -= set(here)
            yield chunk.batch, list(self._seen(chunk, chunk.batch, here))
            self._reached(examples - len({example for example, _ in left}))
        if left:
            raise ValueError(
                f"Every firing must be in the data, {len(left)} places are not. Give the data "
                "that they were found in."
            )

    def _seen(
        self, chunk: PlacedChunk, batch: Batch, here: dict[tuple[int, int], int]
    ) -> Iterator[SeenFiring]:
        mine = [
            one
            for example in dict.fromkeys(example for example, _ in here)
            for one in self._by_example[example]
            if (one.index, one.position) in here
        ]
        direct = self._directs(batch, mine, here)
        fired = self._fired(chunk, mine)
        tokens = batch.tokens[self._place.site.tower]
        windows = {place: window_at(tokens, flat) for place, flat in here.items()}
        for one in mine:
            place = one.index, one.position
            member = int(tokens.example[here[place]])
            strengths = fired[one.index, one.latent]
            yield SeenFiring(one, windows[place], strengths, direct.get(one), member)

    def _directs(
        self, batch: Batch, mine: Sequence[Firing], here: dict[tuple[int, int], int]
    ) -> dict[Firing, DirectAttribution]:
        """Attributions of some firings; as many at a time as fit into memory."""
        wanted = [one for one in mine if one in self._attribute]
        found: dict[Firing, DirectAttribution] = {}
        each = max(1, _ELEMENTS // (self._place.heads * _longest(batch)))
        for first in range(0, len(wanted), each):
            if self.no_attribution:
                break
            some = wanted[first : first + each]
            latents: dict[int, list[int]] = defaultdict(list)
            for one in some:
                latents[here[one.index, one.position]].append(one.latent)
            try:
                told = attributed(self._subject, batch, self._coder, self._place, latents)
            except (TapError, ValueError) as error:
                self.no_attribution = " ".join(str(error).split())
                break
            for one in some:
                at = here[one.index, one.position]
                found[one] = next(d for d in told[at] if d.latent == one.latent)
        return found

    def _fired(
        self, chunk: PlacedChunk, mine: Sequence[Firing]
    ) -> dict[tuple[int, int], tuple[tuple[int, float], ...]]:
        """Where else in their input latents fire, by example and latent."""
        latents: dict[int, list[int]] = defaultdict(list)
        for one in mine:
            if one.latent not in latents[one.index]:
                latents[one.index].append(one.latent)
        places, found = chunk.places[self._site], {}
        for example, wanted in latents.items():
            rows = (places.example == example).nonzero()[:, 0]
            strengths = self._strengths(chunk.rows[self._site][rows], wanted)
            position = places.position[rows]
            for number, latent in enumerate(wanted):
                order = strengths[:, number].sort(descending=True, stable=True).indices
                best = [at for at in order[:MOST_PLACES].tolist() if strengths[at, number] != 0]
                found[example, latent] = tuple(
                    (int(position[at]), float(strengths[at, number])) for at in best
                )
        return found

    @torch.no_grad()
    def _strengths(self, rows: Tensor, latents: Sequence[int]) -> Float[Tensor, "row latent"]:
        encoder = self._coder.encoder
        index = torch.tensor(latents, device=encoder.device)
        return torch.cat(
            [
                self._coder.encode(part.to(encoder.device, encoder.dtype))[:, index].float().cpu()
                for part in rows.split(rows_at_once(self._coder))
            ]
        )


def _longest(batch: Batch) -> int:
    return max((int(t.lengths.max()) for t in batch.tokens.towers.values() if len(t)), default=1)
