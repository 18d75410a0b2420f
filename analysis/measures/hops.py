"""How far a vision head looks: weight by hop on the patch grid, and distance in patches.

All are taken from patches to patches of the same image tile, with each query's weight there
renormalised to 1 (`analysis.measures.patch_grid`). A hop is a ring of the Chebyshev distance
``max(|row difference|, |column difference|)``; hop 0 is the query's own patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.patch_grid import PatchSums, patch_sums

_SHOWN_HOPS = 4


@dataclass(frozen=True)
class _PatchMeasure(ABC):
    """What all share: where they apply, and the patch sums of a call."""

    name: str
    unit: str
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        known = context.needs_positions()
        if known is not True:
            return known
        tower = context.site.tower
        if not context.same_tower:
            return (
                f"{self.name} compares patches of one tower, and {tower} reads another, so it is "
                "not measured there."
            )
        assert context.tokens is not None
        if not bool((context.tokens.row >= 0).any()):
            return (
                f"{self.name} needs patches on a grid, and {tower} has none in these inputs, so "
                "it is not measured there."
            )
        return True

    def start(self, call: CallView) -> Finish:
        sums = patch_sums(call)
        return lambda: self.scores(call, sums)

    @abstractmethod
    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        """The measure's own results from the sums that all share."""


class AttentionDistancePatches(_PatchMeasure):
    """Mean over patch queries of the Euclidean distance to the patches they read, in patches."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        yield Score("", sums.distance, sums.count)


class HopMass(_PatchMeasure):
    """Mean over patch queries of the weight at each hop, 0 to 1; the whole profile as a curve."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        for hop in range(min(_SHOWN_HOPS, sums.mass.shape[-1])):
            yield Score(f"k={hop}", sums.mass[..., hop], sums.count)
        yield Profile("hop", sums.mass.sum(0), sums.count.sum(0)[:, None])


class HopDensity(_PatchMeasure):
    """Mean weight per key at each hop, over the patch queries that have keys there."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        for hop in range(min(_SHOWN_HOPS, sums.mass.shape[-1])):
            yield Score(f"k={hop}", sums.density[..., hop], sums.ring_count[..., hop])
        yield Profile("hop", sums.density.sum(0), sums.ring_count.sum(0))


class HopLift(_PatchMeasure):
    """Weight at each hop over that of a head that looks at all patches alike; 1 is as much."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        expected = patch_sums(call.uniform).mass
        for hop in range(min(_SHOWN_HOPS, sums.mass.shape[-1])):
            yield Score(f"k={hop}", sums.mass[..., hop], expected[..., hop])


class MeanHop(_PatchMeasure):
    """Mean over patch queries of the hop of what they read, in hops."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        hop = torch.arange(sums.mass.shape[-1], device=sums.mass.device).double()
        yield Score("", sums.mass @ hop, sums.count)


class LocalShare(_PatchMeasure):
    """Weight on a patch's own place and its up to eight neighbours: hops 0 and 1, 0 to 1."""

    def scores(self, call: CallView, sums: PatchSums) -> Iterator[Result]:
        yield Score("", sums.mass[..., :2].sum(-1), sums.count)


ATTENTION_DISTANCE_PATCHES = AttentionDistancePatches("attention_distance_patches", "patches")
HOP_MASS = HopMass("hop_mass", "share")
HOP_DENSITY = HopDensity("hop_density", "share")
HOP_LIFT = HopLift("hop_lift", "ratio")
MEAN_HOP = MeanHop("mean_hop", "hops")
LOCAL_SHARE = LocalShare("local_share", "share")
