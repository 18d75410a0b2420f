"""How far a vision head looks: weight by hop on the patch grid, and distance in patches.

All are taken from patches to patches of the same image tile, with each query's weight there
renormalised to 1 (`analysis.measures.patch_sums`). A hop is a ring of equal distance: without
another word the Chebyshev distance ``max(|row difference|, |column difference|)``; hop 0 is the
query's own patch. Rings of the other two metrics have to be named: three of each would make every
table three times as long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.displacements import squared_distance
from analysis.measures.patch_grid import needs_patches
from analysis.measures.patch_sums import (
    PatchSums,
    by_hop,
    density_sums,
    patch_sums,
    readers_by_hop,
)

_SHOWN_HOPS = 4


@dataclass(frozen=True)
class _PatchMeasure(ABC):
    """What all share: where they apply, and what a hop is."""

    name: str
    unit: str
    metric: str = "chebyshev"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_patches(context, self.name)

    @abstractmethod
    def start(self, call: CallView) -> Finish: ...


class _OfSums(_PatchMeasure):
    """Those that read nothing but the sums of a call."""

    def start(self, call: CallView) -> Finish:
        sums = patch_sums(call)
        return lambda: self.scores(call, sums)

    @abstractmethod
    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        """The measure's own results."""


class AttentionDistancePatches(_OfSums):
    """Mean over patch queries of the Euclidean distance to the patches they read, in patches."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        weight = sums.weight
        distance = squared_distance(weight.shape, weight.device).double().sqrt()
        yield Score("", (weight * distance).sum((-2, -1)), sums.count)


class HopMass(_OfSums):
    """Mean over patch queries of the weight at each hop, 0 to 1; the whole profile as a curve."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        mass = sums.mass(self.metric)
        for hop, weight in enumerate(_shown(mass)):
            yield Score(f"k={hop}", weight, sums.count)
        yield Profile("hop", mass.sum(0), sums.count.sum(0)[:, None])


class HopDisc(_OfSums):
    """Mean over patch queries of the weight up to each hop, 0 to 1.

    The whole profile is the running sum of that of hop mass.
    """

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        for hop, weight in enumerate(accumulate(_shown(sums.mass(self.metric)))):
            yield Score(f"k={hop}", weight, sums.count)


class HopDensity(_PatchMeasure):
    """Mean weight per key at each hop, over the patch queries that have keys there."""

    def start(self, call: CallView) -> Finish:
        sums, density = patch_sums(call), density_sums(call, self.metric)

        def finish() -> Iterator[Result]:
            readers = readers_by_hop(call, sums, self.metric)
            weight = by_hop(density, self.metric)
            for hop in range(min(_SHOWN_HOPS, weight.shape[-1])):
                yield Score(f"k={hop}", weight[..., hop], readers[..., hop])
            yield Profile("hop", weight.sum(0), readers.sum(0))

        return finish


class HopLift(_OfSums):
    """Weight at each hop over that of a head that looks at all patches alike; 1 is as much."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        mass = sums.mass(self.metric)
        expected = patch_sums(call.uniform).mass(self.metric)
        for hop in range(min(_SHOWN_HOPS, mass.shape[-1])):
            yield Score(f"k={hop}", mass[..., hop], expected[..., hop])


class MeanHop(_OfSums):
    """Mean over patch queries of the hop of what they read, in hops."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        mass = sums.mass(self.metric)
        hop = torch.arange(mass.shape[-1], device=mass.device).double()
        yield Score("", mass @ hop, sums.count)


class LocalShare(_OfSums):
    """Weight on a patch's own place and its up to eight neighbours: hops 0 and 1, 0 to 1."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        yield Score("", sums.mass(self.metric)[..., :2].sum(-1), sums.count)


def _shown(mass: Tensor) -> Iterator[Tensor]:
    """``[example head]`` for each of the first hops, 0 where the grid is too small for it."""
    # Which hops there are must not depend on which other images share a batch.
    padded = torch.nn.functional.pad(mass, (0, max(_SHOWN_HOPS - mass.shape[-1], 0)))
    yield from padded[..., :_SHOWN_HOPS].unbind(-1)


ATTENTION_DISTANCE_PATCHES = AttentionDistancePatches("attention_distance_patches", "patches")
HOP_MASS = HopMass("hop_mass", "share")
HOP_DISC = HopDisc("hop_disc", "share")
HOP_DENSITY = HopDensity("hop_density", "share")
HOP_LIFT = HopLift("hop_lift", "ratio")
MEAN_HOP = MeanHop("mean_hop", "hops")
LOCAL_SHARE = LocalShare("local_share", "share")

HOP_MASS_MANHATTAN = HopMass("hop_mass_manhattan", "share", "manhattan", costly=True)
HOP_DISC_MANHATTAN = HopDisc("hop_disc_manhattan", "share", "manhattan", costly=True)
HOP_DENSITY_MANHATTAN = HopDensity("hop_density_manhattan", "share", "manhattan", costly=True)
HOP_LIFT_MANHATTAN = HopLift("hop_lift_manhattan", "ratio", "manhattan", costly=True)

HOP_MASS_EUCLIDEAN = HopMass("hop_mass_euclidean", "share", "euclidean", costly=True)
HOP_DISC_EUCLIDEAN = HopDisc("hop_disc_euclidean", "share", "euclidean", costly=True)
HOP_DENSITY_EUCLIDEAN = HopDensity("hop_density_euclidean", "share", "euclidean", costly=True)
HOP_LIFT_EUCLIDEAN = HopLift("hop_lift_euclidean", "ratio", "euclidean", costly=True)
