"""Where each feature fires: its strongest examples, and examples of all its strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.places import PlacedActivations
from sae.coders.coder import Coder
from sae.reading.head_shares import refuse_site
from sae.reading.kept_firings import Firings, Sampled, Strongest
from sae.reading.latent_reading import chosen_latents

TOP, GROUPS, PER_GROUP = 20, 10, 5
SAMPLE = 200
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Firing:
    """One place at which a latent fires.

    Attributes:
        example: id of the example.
        index: its number in the source's ids.
        position: position of the example within the tower, padding left out.
    """

    latent: int
    example: str
    index: int
    position: int
    strength: float


@dataclass(frozen=True)
class FeatureExamples:
    """What was kept of one pass over a data set.

    Attributes:
        latents: those that were followed.
        firings: rows at which each fired.
        largest: the largest strength of each, 0 where it never fired.
        rows: rows that were read, all of the data set.
        strongest: per latent, the examples with the largest strengths, each example once.
        sample: per latent, a uniform sample of its firings.
        ids: of examples, by index.
    """

    site: str
    latents: tuple[int, ...]
    firings: Int[Tensor, "slot"]
    largest: Float[Tensor, "slot"]
    rows: int
    strongest: Firings = field(repr=False)
    sample: Firings = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)

    def top(self, latent: int) -> list[Firing]:
        """The strongest examples, strongest first."""
        return self._of(self.strongest, latent)

    def quantiles(
        self, latent: int, groups: int = GROUPS, per_group: int = PER_GROUP
    ) -> list[list[Firing]]:
        """Examples of all strengths: firings in groups of equal number, strongest group first.

        Groups are quantiles of the sample (so of strengths where the feature fires), and what is
        shown of each is spread evenly over it. Groups are empty where it fired less often.
        """
        mine = self._of(self.sample, latent)
        mine.sort(key=lambda firing: (-firing.strength, firing.index, firing.position))
        edges = [round(len(mine) * group / groups) for group in range(groups + 1)]
        found = []
        for first, last in pairwise(edges):
            size, shown = last - first, min(per_group, last - first)
            found.append([mine[first + (2 * i + 1) * size // (2 * shown)] for i in range(shown)])
        return found

    def _of(self, kept: Firings, latent: int) -> list[Firing]:
        if latent not in self.latents:
            raise ValueError(
                f"Latent {latent} must be one of the {len(self.latents)} that were followed. "
                "Name it in `latents`."
            )
        own = kept.at(kept.slot == self.latents.index(latent))
        columns = (own.example.tolist(), own.position.tolist(), own.strength.tolist())
        return [Firing(latent, self.ids[e], e, p, s) for e, p, s in zip(*columns, strict=True)]


@torch.no_grad()
def feature_examples(
    activations: PlacedActivations,
    coder: Coder,
    site: str,
    latents: int | Sequence[int] | None = None,
    *,
    top: int = TOP,
    sample: int = SAMPLE,
    seed: int = 0,
) -> FeatureExamples:
    """Go through a data set once and keep examples of each feature; every row is looked at.

    Memory: twice ``(top + sample)`` firings per latent, however large the data set is. The result
    does not depend on batches or their order.

    Args:
        latents: which; all by default.
        top: strongest examples per latent, each example once.
        sample: firings per latent of which quantiles are shown.
        seed: of the sample.

    Raises:
        ValueError: the stream does not have the site, or there is no such latent.

    Source: Kissane et al. 2024 (arXiv 2406.17759), whose page of a feature shows 20 and 10 x 5;
    they cut the range of strengths into equal parts, these are parts of equal number.
    """
    refuse_site(activations, coder, site)
    if top < 1 or sample < 1:
        raise ValueError(f"`top` and `sample` must be positive, got {top} and {sample}.")
    chosen = tuple(range(coder.latents) if latents is None else chosen_latents(coder, latents))
    index = torch.tensor(chosen)
    best, drawn = Strongest(len(chosen), top), Sampled(len(chosen), sample, seed)
    fired = torch.zeros(len(chosen), dtype=torch.long)
    largest, rows, keys = torch.zeros(len(chosen)), 0, _Keys()
    for chunk in activations.placed_chunks(0):
        if site not in chunk.rows:
            continue
        places, whole = chunk.places[site], chunk.rows[site]
        step = max(1, _BLOCK // coder.latents)
        for first in range(0, len(whole), step):
            x = whole[first : first + step].to(coder.encoder.device, coder.encoder.dtype)
            strengths = coder.encode(x)[:, index.to(x.device)].float().cpu()
            rows += len(x)
            at, slot = strengths.nonzero(as_tuple=True)
            new = Firings(
                slot,
                strengths[at, slot],
                places.example[first + at].cpu(),
                places.position[first + at].cpu(),
            )
            fired += torch.bincount(slot, minlength=len(chosen))
            largest = torch.maximum(largest, strengths.amax(0))
            best.add(new)
            drawn.add(new, keys.of(activations.ids), index)
    return FeatureExamples(
        site, chosen, fired, largest, rows, best.kept, drawn.kept, tuple(activations.ids)
    )


class _Keys:
    """A number for each example, of its id alone; ids may become known while a source is read."""

    def __init__(self) -> None:
        self._known: list[int] = []

    def of(self, ids: Sequence[str]) -> Int[Tensor, "example"]:
        for name in ids[len(self._known) :]:
            digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._known.append(int.from_bytes(digest, "little", signed=True))
        return torch.tensor(self._known, dtype=torch.long)
