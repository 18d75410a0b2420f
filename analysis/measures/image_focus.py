"""How concentrated the weight of a decisive query is on the image, and which queries are decisive.

The query is CLS in a vision tower; in a tower that writes, the position at which the first token of
the answer is predicted (without an answer, the last one of the prompt).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.part_masses import parts_of_queries, queries_in
from analysis.measures.picked_rows import image_maps, pick_rows
from probes.tokens.map import ROLES, TowerTokens

DECIDING = "deciding"
SHARES = (0.1, 0.05, 0.25, 0.5)
_CURVE_STEPS = 20
TEXT_ROLES = ("text", "system", "generated")
_CLS = ROLES.index("cls")


def needs_image_maps(context: MeasureContext, measure: str) -> Literal[True] | str:
    """True where the keys hold an image and a query decides something."""
    known = context.needs_positions()
    if known is not True:
        return known
    tower, tokens, keys = context.site.tower, context.tokens, context.key_tokens
    assert tokens is not None and keys is not None
    if not bool(keys.has_role("image").any()):
        return (
            f"{measure} looks at what is read of an image, and {tower} reads none in these "
            "inputs, so it is not measured there."
        )
    if not bool(tokens.has_role("cls", *TEXT_ROLES).any()):
        return (
            f"{measure} looks at the map of one query, CLS or where an answer begins, and {tower} "
            "has neither, so it is not measured there."
        )
    return True


def deciding_queries(plan: CallPlan) -> Tensor:
    """Bool ``[batch query]``: see the top of this file."""

    def find() -> Tensor:
        assert plan.tokens is not None
        if not writes(plan.tokens):
            return plan.of_queries("role") == _CLS
        return queries_in(plan, parts_of_queries(plan).deciding)

    return plan.memo("deciding queries", find)


@dataclass(frozen=True)
class ImageConcentration:
    """Share of a map's weight on its largest tenth of image keys, 0 to 1; the curve for all shares.

    Variants ``top=10%`` and so on; between whole keys the cumulative weight is interpolated, so
    that the null is the share itself. FasterVLM (Zhang et al., 2024, arXiv 2412.01818) compares
    CLS and the last token of the prompt by this curve (dispersion).
    """

    name: str = "image_concentration"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_image_maps(context, self.name)

    def start(self, call: CallView) -> Finish:
        rows = pick_rows(call, DECIDING, deciding_queries(call.plan))

        def finish() -> Iterator[Result]:
            plan = call.plan
            maps, allowed = image_maps(call, rows, DECIDING)
            total = maps.double().sum(-1)
            there = (total > 0).double()
            count = rows.picks.per_example(there, plan.examples)
            cumulative = _cumulative(maps) / torch.where(total > 0, total, 1.0)[..., None]
            size = allowed.sum(-1).double()
            for share in SHARES:
                held = _interpolated(cumulative, share * size) * there
                variant = f"top={share:.0%}"
                yield Score(variant, rows.picks.per_example(held, plan.examples), count)
            steps = torch.arange(_CURVE_STEPS + 1, device=size.device).double() / _CURVE_STEPS
            curve = torch.stack([_interpolated(cumulative, s * size) for s in steps], dim=-1)
            summed = (curve * there[..., None]).sum(0)
            yield Profile("share of image keys, in 5 %", summed, there.sum(0)[:, None])

        return finish


def writes(tokens: TowerTokens) -> bool:
    """Whether a tower reads or writes text."""
    return bool(tokens.has_role(*TEXT_ROLES).any())


def _cumulative(maps: Tensor) -> Tensor:
    """Float64 ``[pick head key + 1]``: weight of the k largest keys, k from 0."""
    ordered = maps.sort(-1, descending=True).values.double()
    return torch.nn.functional.pad(ordered.cumsum(-1), (1, 0))


def _interpolated(cumulative: Tensor, count: Tensor) -> Tensor:
    """``[pick head]`` of ``[pick head key + 1]`` at counts ``[pick]`` that need not be whole."""
    low = count.floor().long().clamp(0, cumulative.shape[-1] - 1)
    high = (low + 1).clamp_max(cumulative.shape[-1] - 1)
    shape = (-1, cumulative.shape[1], 1)
    at = [cumulative.gather(-1, i[:, None, None].expand(shape))[..., 0] for i in (low, high)]
    return at[0] + (count - low)[:, None] * (at[1] - at[0])


IMAGE_CONCENTRATION = ImageConcentration()
