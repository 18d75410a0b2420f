"""The places of an example as a reader sees them: words around a token, or a patch of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from probes.tokens.map import ROLES, TowerTokens
from sae.activations.places import PlacedActivations, PlacedChunk
from sae.coders.coder import Coder
from sae.reading.direct_attribution import DirectAttribution, attributed
from sae.reading.feature_examples import Firing
from sae.reading.latent_reading import site_of

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

REACH = 5


@dataclass(frozen=True)
class Patch:
    """Where a patch lies.

    Attributes:
        image: index of the image within its example.
        tile: index of the tile within its image.
        box: left, top, right, bottom in pixels of the original image.
    """

    image: int
    tile: int
    row: int
    column: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A position with what stands around it.

    Attributes:
        position: flat, in the token map of its batch.
        words: tokens from ``reach`` before to ``reach`` after; empty where no text is known.
        centre: which of them is the position itself.
        patch: where it lies, for positions of images.
    """

    tower: str
    position: int
    role: str
    words: tuple[str, ...] = ()
    centre: int = 0
    patch: Patch | None = None


@dataclass(frozen=True)
class FiringView:
    """A firing with its window and that of the source which brought the most.

    Attributes:
        destination: where the latent fires.
        source: the source with the largest direct attribution there, None where its place is not
            known.
        source_score: that attribution.
        attribution: all of it: by head and source, and for patches the map on the picture.
        example: the input itself, with its images and what is known of them.
    """

    firing: Firing
    destination: Window
    source: Window | None
    source_score: float
    attribution: DirectAttribution = field(repr=False)
    example: Example = field(repr=False)


def window_at(tokens: TowerTokens, position: int, reach: int = REACH) -> Window:
    """The window around a flat position, within its row; padding is left out."""
    row = int(torch.searchsorted(tokens.starts, position, right=True)) - 1
    first = max(int(tokens.starts[row]), position - reach)
    last = min(int(tokens.starts[row + 1]), position + reach + 1)
    pad = ROLES.index("pad")
    inside = [at for at in range(first, last) if at == position or int(tokens.role[at]) != pad]
    words = tuple(tokens.text[at] for at in inside) if tokens.text else ()
    patch = None
    if int(tokens.row[position]) >= 0:
        left, top, right, bottom = tokens.box[position].tolist()
        patch = Patch(
            int(tokens.image[position]),
            int(tokens.tile[position]),
            int(tokens.row[position]),
            int(tokens.column[position]),
            (left, top, right, bottom),
        )
    role = ROLES[int(tokens.role[position])]
    return Window(tokens.tower, position, role, words, inside.index(position), patch)


def firing_views(
    subject: Subject,
    activations: PlacedActivations,
    coder: Coder,
    site: str,
    firings: Iterable[Firing],
    *,
    reach: int = REACH,
) -> list[FiringView]:
    """Windows and direct attributions of firings, in the order given.

    The data is gone through once more; batches without a wanted example are passed by.

    Raises:
        ValueError: the stream has no inputs (a store on a disk), or other examples than those
            that the firings come from.
    """
    wanted = list(firings)
    place = site_of(subject, coder, site)
    left = {(one.index, one.position) for one in wanted}
    views: dict[Firing, FiringView] = {}
    for chunk in activations.placed_chunks(0):
        if not left:
            break
        here = flat_places(chunk, site, left)
        if not here:
            continue
        if chunk.batch is None:
            raise ValueError(
                "Windows need the inputs themselves, this stream was read from a disk. Give the "
                "activations of the subject."
            )
        left -= set(here)
        mine = [one for one in wanted if (one.index, one.position) in here]
        latents: dict[int, list[int]] = {}
        for one in mine:
            refuse_other(one, activations)
            known = latents.setdefault(here[one.index, one.position], [])
            if one.latent not in known:
                known.append(one.latent)
        found = attributed(subject, chunk.batch, coder, place, latents)
        for one in mine:
            flat = here[one.index, one.position]
            direct = next(d for d in found[flat] if d.latent == one.latent)
            views[one] = _view(one, direct, chunk.batch, reach)
    if left:
        raise ValueError(
            f"Every firing must be in the data, {len(left)} of {len(wanted)} are not. Give the "
            "data that they were found in."
        )
    return [views[one] for one in wanted]


def flat_places(
    chunk: PlacedChunk, site: str, wanted: set[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """Flat position in the batch's token map of each wanted (example, position) of a chunk."""
    if site not in chunk.places:
        return {}
    places = chunk.places[site]
    examples = torch.tensor(sorted({example for example, _ in wanted}))
    near = torch.isin(places.example, examples).nonzero()[:, 0].tolist()
    rows = {(int(places.example[i]), int(places.position[i])): i for i in near}
    if chunk.batch is None:
        return dict.fromkeys(wanted & set(rows), -1)
    return {place: int(chunk.flat[site][rows[place]]) for place in wanted & set(rows)}


def _view(firing: Firing, direct: DirectAttribution, batch: Batch, reach: int) -> FiringView:
    best = int(direct.by_source.argmax())
    sources, source = direct.sources, None
    if int(sources.index[best]) >= 0:
        source = window_at(sources.map, int(sources.index[best]), reach)
    tokens = sources.tokens[direct.site.tower]
    window = window_at(tokens, direct.destination, reach)
    example = batch.examples[int(tokens.example[direct.destination])]
    return FiringView(firing, window, source, float(direct.by_source[best]), direct, example)


def refuse_other(firing: Firing, activations: PlacedActivations) -> None:
    ids = activations.ids
    if firing.index >= len(ids) or ids[firing.index] != firing.example:
        raise ValueError(
            f"Example {firing.index} must be {firing.example!r} as where the firing was found, it "
            "is another. Give the same data."
        )
