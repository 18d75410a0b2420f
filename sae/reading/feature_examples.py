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
        mean: mean strength over its firings, NaN where it never fired.
        rows: rows that were read, all of the data set.
        strongest: per latent, the examples with the largest strengths, each example once.
        sample: per latent, a uniform sample of its firings.
        ids: of examples, by index.
    """

    site: str
    latents: tuple[int, ...]
    firings: Int[Tensor, "slot"]
    largest: Float[Tensor, "slot"]
    mean: Float[Tensor, "slot"]
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
    keeper = ExampleKeeper(chosen, top, sample, seed)
    for chunk in activations.placed_chunks(0):
        if site not in chunk.rows:
            continue
        places, whole = chunk.places[site], chunk.rows[site]
        step = rows_at_once(coder)
        for first in range(0, len(whole), step):
            x = whole[first : first + step].to(coder.encoder.device, coder.encoder.dtype)
            strengths = coder.encode(x)[:, index.to(x.device)].float().cpu()
            here = slice(first, first + len(x))
            keeper.add(
                strengths, places.example[here].cpu(), places.position[here].cpu(), activations.ids
            )
    return keeper.examples(site, activations.ids)


def rows_at_once(coder: Coder) -> int:
    """Rows of a block whose strengths of all latents fit into memory together."""
    return max(1, _BLOCK // coder.latents)


class ExampleKeeper:
    """Looks at strengths block by block, and keeps what `FeatureExamples` has."""

    def __init__(self, latents: Sequence[int], top: int, sample: int, seed: int) -> None:
        """Args: as of `feature_examples`, the latents all known."""
        count = len(latents)
        self._latents, self._index = tuple(latents), torch.tensor(latents)
        self._best, self._drawn = Strongest(count, top), Sampled(count, sample, seed)
        self._fired = torch.zeros(count, dtype=torch.long)
        self._sum = torch.zeros(count, dtype=torch.float64)
        self._largest, self._rows, self._keys = torch.zeros(count), 0, _Keys()

    def add(
        self,
        strengths: Float[Tensor, "row slot"],
        example: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
        ids: Sequence[str],
    ) -> None:
        """Look at the strengths of some rows, whose places are given; all on the CPU."""
        self._rows += len(strengths)
        at, slot = strengths.nonzero(as_tuple=True)
        new = Firings(slot, strengths[at, slot], example[at], position[at])
        self._fired += torch.bincount(slot, minlength=len(self._latents))
        self._sum += torch.zeros_like(self._sum).index_add_(0, slot, new.strength.double())
        if len(strengths):
            self._largest = torch.maximum(self._largest, strengths.amax(0))
        self._best.add(new)
        self._drawn.add(new, self._keys.of(ids), self._index)

    def examples(self, site: str, ids: Sequence[str]) -> FeatureExamples:
        """What was kept."""
        return FeatureExamples(
            site,
            self._latents,
            self._fired,
            self._largest,
            (self._sum / self._fired).float(),
            self._rows,
            self._best.kept,
            self._drawn.kept,
            tuple(ids),
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
