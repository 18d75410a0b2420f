"""Whether a feature that fires when an object is named reads that object's place in the image.

Where the model is about to say a word of an object's name, a feature's direct attribution says what
each patch brings. Its positive part, as a share of all that the image brings, is set against the
object's box; the control sets the same map against boxes of objects in other examples (shuffled),
so that a feature that always reads the same corner gains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.statistics import half_of
from sae.coders.coder import Coder
from sae.evidence.means import Mean, Means
from sae.evidence.scaled_boxes import Box, scaled
from sae.reading.direct_attribution import DirectAttribution, attributed
from sae.reading.latent_reading import site_of, strengths_at

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens
    from sae.activations import SubjectActivations


class Mention(Protocol):
    """One mention, in an output, of an object whose place in the image is known.

    Attributes:
        kind: what it is called.
        first, last: flat positions of the first and last token that name it.
        boxes: of all objects of that name.
    """

    @property
    def kind(self) -> str: ...

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def boxes(self) -> tuple[Box, ...]: ...


Mentions = Callable[["TowerTokens", "Batch"], Iterable[Mention]]
"""Every mention in the rows of a tower."""
Coverage = Callable[[Tensor, Sequence[Box]], Float[Tensor, " patch"]]
"""Of patches ``[patch 4]``, boxes themselves, the share that lies in one of the boxes, 0 to 1."""

_DRAWS = 8
_FEWEST = 8
"""Objects, of different boxes or not, below which a feature is not chosen."""


@dataclass(frozen=True)
class BoxEvidence:
    """Where a feature reads the image when an object is named.

    Attributes:
        kind: the object that is named at most of its firings.
        names: of all objects at whose names it fires, how often each.
        on_box: share of the positive attribution of the image's patches that is in the object's
            box, 0 to 1; patches count by what the box covers of them.
        shuffled: the same maps on boxes of objects of other examples, eight drawn for each, mean.
            Boxes of images of another size are scaled to what the patches cover.
        difference: ``on_box - shuffled``, paired.
        from_image: share of the positive attribution of all sources that the image brings.
    """

    site: str
    latent: int
    kind: str
    names: Mapping[str, int]
    on_box: Mean
    shuffled: Mean
    difference: Mean
    from_image: Mean


@dataclass(frozen=True)
class _Naming:
    """A firing where an object is about to be named."""

    example: str
    kind: str
    latent: int
    patches: Float[Tensor, "patch 4"]
    brought: Float[Tensor, " patch"]
    boxes: tuple[Box, ...]
    from_image: float


def box_evidence(
    subject: Subject,
    coder: Coder,
    activations: SubjectActivations,
    latent: int | None = None,
    *,
    mentions: Mentions,
    coverage: Coverage,
    seed: int = 0,
) -> BoxEvidence:
    """Measure one feature on images whose objects have boxes, with answers that name them.

    Args:
        activations: of the coder's site in the language model, of such examples.
        latent: None: the feature that reads boxes most clearly, chosen on one half of the
            examples; everything is then measured on the other half.
        mentions: finds which tokens name which object.
        coverage: measures how much of a patch a box covers.

    Raises:
        ValueError: no object of known box is named, or no feature fires at enough of them, in two
            examples or more.
    """
    (site,) = activations.widths
    namings = list(_namings(subject, coder, activations, mentions, latent))
    if latent is None:
        mine = [one for one in namings if half_of(one.example, seed) == 0]
        latent = _clearest(mine, coverage, seed)
        namings = [
            one for one in namings if half_of(one.example, seed) == 1 and one.latent == latent
        ]
    there = len({one.example for one in namings})
    if there < 2:
        raise ValueError(
            f"Latent {latent} must fire where objects are named whose boxes are known, in at least "
            f"2 examples, it does so in {there}. Choose another, or give more examples with "
            "`boxes`."
        )
    means = Means(seed)
    for one, on_box, shuffled in _on_boxes(namings, coverage, seed):
        values = {"on_box": on_box, "shuffled": shuffled, "difference": on_box - shuffled}
        means.add(one.example, {**values, "from_image": one.from_image})
    names = Counter(one.kind for one in namings)
    parts = ("on_box", "shuffled", "difference", "from_image")
    return BoxEvidence(
        site,
        latent,
        names.most_common(1)[0][0],
        dict(names.most_common()),
        **{name: means.of(name) for name in parts},
    )


def _namings(
    subject: Subject,
    coder: Coder,
    activations: SubjectActivations,
    mentions: Mentions,
    latent: int | None,
) -> Iterator[_Naming]:
    """Every firing at a position where a word of an object's name is predicted."""
    (site,) = activations.widths
    place = site_of(subject, coder, site)
    for chunk in activations.placed_chunks(0):
        batch = chunk.batch
        assert batch is not None
        tokens = batch.tokens[place.site.tower]
        strengths = strengths_at(coder, chunk.rows[site]).cpu()
        rows = {position: row for row, position in enumerate(chunk.flat[site].tolist())}
        wanted: dict[int, list[int]] = {}
        objects = {}
        for one in mentions(tokens, batch):
            # Activations may leave positions out, by their roles.
            read = [at for at in dict.fromkeys((one.first - 1, one.last - 1)) if at in rows]
            for position in read:
                fires = strengths[rows[position]].nonzero()[:, 0].tolist()
                chosen = [each for each in fires if latent is None or each == latent]
                if chosen:
                    wanted[position], objects[position] = chosen, one
        if not wanted:
            continue
        for position, found in attributed(subject, batch, coder, place, wanted).items():
            one = objects[position]
            name = batch.examples[int(tokens.example[position])].id
            for direct in found:
                patches, brought, share = _image_part(direct, batch)
                if float(brought.sum()) > 0:
                    yield _Naming(name, one.kind, direct.latent, patches, brought, one.boxes, share)


def _image_part(direct: DirectAttribution, batch: Batch) -> tuple[Tensor, Tensor, float]:
    """Boxes of the patches that are read, what each brings (positive part), and their share."""
    index = direct.sources.index
    tokens, positive = direct.sources.map, direct.by_source.clamp_min(0)
    own = index[index >= 0]
    placed = ~tokens.box[own].isnan().any(1)
    brought = positive[index >= 0][placed]
    total = float(positive.sum())
    return tokens.box[own[placed]], brought, float(brought.sum()) / total if total else 0.0


def _on_boxes(
    namings: list[_Naming], coverage: Coverage, seed: int
) -> Iterator[tuple[_Naming, float, float]]:
    """Of each firing, the share on its own box and, on average, on some that others have."""
    dice = torch.Generator().manual_seed(seed)
    for one in namings:
        weight = one.brought / one.brought.sum()
        # Of other examples: objects of one scene are never in the same place.
        strange = [at for at, other in enumerate(namings) if other.example != one.example]
        if not strange:
            continue
        order = torch.randperm(len(strange), generator=dice)[:_DRAWS].tolist()
        drawn = [namings[strange[at]] for at in order]
        moved = [scaled(other.boxes, other.patches, one.patches) for other in drawn]
        others = [coverage(one.patches, boxes) for boxes in moved]
        own = float((coverage(one.patches, one.boxes) * weight).sum())
        yield one, own, float((torch.stack(others).mean(0) * weight).sum())


def _clearest(namings: list[_Naming], coverage: Coverage, seed: int) -> int:
    """The feature with the largest gain of its box on the shuffled control, sum times mean.

    The mean alone would take one that hardly fires. What is lost stays a loss: one that reads past
    its boxes is not chosen for it.
    """
    by_latent: dict[int, list[_Naming]] = {}
    for one in namings:
        by_latent.setdefault(one.latent, []).append(one)
    gains: dict[int, float] = {}
    for latent, mine in by_latent.items():
        if len(mine) >= _FEWEST:
            gain = sum(own - other for _, own, other in _on_boxes(mine, coverage, seed))
            gains[latent] = gain * abs(gain) / len(mine)
    if not gains:
        raise ValueError(
            f"Some feature must fire at {_FEWEST} names of objects or more, none does. Give more "
            "examples."
        )
    return max(gains, key=lambda latent: gains[latent])
