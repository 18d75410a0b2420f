"""How a text head's weight lies over distances, in bins that double."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.diagonals import offset_sums
from analysis.measures.text_positions import needs_text_order

AXIS = "distance_bin"
"""Point 0 of a curve is distance 0, point b > 0 the distances from ``2^(b-1)`` to ``2^b - 1``."""

_SHOWN_BINS = 8


@dataclass(frozen=True)
class DistanceProfile:
    """Mean over queries of the weight at each distance bin, 0 to 1; all bins as a curve.

    Distances are whole tokens in either direction: 0, 1, 2-3, 4-7 and so on. The variants are the
    first seven bins and everything beyond, ``d=64+``; the curve goes on to the longest input.
    """

    name: str = "distance_profile"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        sums = offset_sums(call)

        def finish() -> Iterator[Result]:
            binned = by_bin(sums.by_distance)
            count = call.plan.count_queries()
            for place, variant in enumerate(shown_names()):
                yield Score(variant, call.plan.sum_blocks(shown_bins(binned)[..., place]), count)
            yield Profile(AXIS, binned.sum(0), count.sum(0)[:, None])

        return finish


@dataclass(frozen=True)
class DistanceLift:
    """Weight at each distance bin over that of a head that looks at all allowed keys alike.

    Bins that no pair of the input lies in have no lift. Named, not part of "all": the table has
    value and null of each bin as `distance_profile`.
    """

    name: str = "distance_lift"
    unit: str = "ratio"
    costly: bool = True
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_order(context, self.name)

    def start(self, call: CallView) -> Finish:
        sums = offset_sums(call)

        def finish() -> Iterator[Result]:
            mass = shown_bins(by_bin(sums.by_distance))
            expected = shown_bins(by_bin(offset_sums(call.uniform).by_distance))
            for place, variant in enumerate(shown_names()):
                found, even = (call.plan.sum_blocks(p[..., place]) for p in (mass, expected))
                yield Score(variant, found, even)

        return finish


def by_bin(distances: Tensor) -> Tensor:
    """``[... bin]``: values by distance ``[... distance]`` summed within bins that double.

    >>> by_bin(torch.tensor([1.0, 2, 4, 8, 16, 32])).tolist()
    [1.0, 2.0, 12.0, 48.0]
    """
    number = torch.arange(distances.shape[-1], device=distances.device)
    place = torch.where(number > 0, number.double().clamp_min(1).log2().floor() + 1, 0.0).long()
    total = distances.new_zeros(*distances.shape[:-1], int(place[-1]) + 1)
    return total.index_add_(-1, place, distances)


def bin_name(place: int) -> str:
    """The distances of a bin, as ``4-7``."""
    low, high = (0, 0) if place == 0 else (1 << (place - 1), (1 << place) - 1)
    return str(low) if low == high else f"{low}-{high}"


def shown_names() -> list[str]:
    """The variants: the first bins one by one, the last all the rest."""
    last = f"d={1 << (_SHOWN_BINS - 2)}+"
    return [*(f"d={bin_name(place)}" for place in range(_SHOWN_BINS - 1)), last]


def shown_bins(binned: Tensor) -> Tensor:
    """``[... 8]``: bins in the order of the variants, 0 where the input has no such distance."""
    padded = torch.nn.functional.pad(binned, (0, max(_SHOWN_BINS - binned.shape[-1], 0)))
    first, rest = padded[..., : _SHOWN_BINS - 1], padded[..., _SHOWN_BINS - 1 :]
    return torch.cat([first, rest.sum(-1, keepdim=True)], dim=-1)


DISTANCE_PROFILE = DistanceProfile()
DISTANCE_LIFT = DistanceLift()
