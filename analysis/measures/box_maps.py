"""Maps of the queries that name objects, and how the objects' boxes lie on the image keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measures.part_masses import parts_of_queries
from analysis.measures.picked_rows import (
    PickedRows,
    image_maps,
    queries_at,
    shuffled_places,
)
from analysis.vision.boxes import areas, coverage
from analysis.vision.named_objects import NamedObject, named_objects

WORDS = ("last", "first", "read")
"""Which query belongs to a mention: that which predicts the last or the first token of the name,
or the last token itself."""
NAMING = "naming"


@dataclass
class BoxMaps:
    """Maps of all queries that name objects, one *read* for each mention and word of `WORDS`.

    Attributes:
        maps: float32 ``[read head key]``, 0 but at the image keys.
        layout: what is the same for all layers.
    """

    maps: Tensor
    layout: BoxLayout

    @property
    def inside(self) -> Tensor:
        """Float32 ``[read head]``: weight on the box, each patch by the share that lies in it."""
        return torch.einsum("rhk,rk->rh", self.maps, self.layout.cover)

    @property
    def total(self) -> Tensor:
        """Float32 ``[read head]``: weight on the image."""
        return self.maps.sum(-1)


@dataclass
class BoxLayout:
    """Which reads there are, and how their boxes lie.

    Attributes:
        pick: long ``[read]``: the picked row of each.
        slot: long ``[read]``: word and example in one number, ``word * examples + example``.
        allowed: bool ``[read key]``: image keys whose place is known and that may be read.
        cover, area: float32 ``[read key]``: see `analysis.vision.boxes`; 0 where not allowed.
        chance: long ``[read key]``: the keys in an order that has nothing to do with weights.
    """

    pick: Tensor
    slot: Tensor
    allowed: Tensor
    cover: Tensor
    area: Tensor
    chance: Tensor


def naming_queries(plan: CallPlan) -> Tensor:
    """Bool ``[batch query]``: every query of a read."""

    def find() -> Tensor:
        return queries_at(plan, torch.cat([_positions(plan, word) for word in WORDS]))

    return plan.memo("naming queries", find)


def box_maps(call: CallView, rows: PickedRows) -> BoxMaps:
    """The maps of all reads; measures of this family share them."""
    if "box maps" not in call.shared:
        maps, _ = image_maps(call, rows, NAMING)
        layout = call.plan.memo("box layout", lambda: _layout(call, rows))
        call.shared["box maps"] = BoxMaps(maps[layout.pick], layout)
    return call.shared["box maps"]


def sums_by_word(call: CallView, layout: BoxLayout, values: Tensor) -> Tensor:
    """Float64 ``[word example head]``: ``[read head]`` summed over each example's reads."""
    examples = call.plan.examples
    total = values.new_zeros(len(WORDS) * examples, values.shape[1], dtype=torch.float64)
    total.index_add_(0, layout.slot, values.double())
    return total.view(len(WORDS), examples, -1)


def _mentions(plan: CallPlan) -> list[NamedObject]:
    def find() -> list[NamedObject]:
        assert plan.tokens is not None and plan.batch is not None
        return named_objects(plan.tokens, parts_of_queries(plan), plan.batch)

    return plan.memo("named objects", find)


def _positions(plan: CallPlan, word: str) -> Tensor:
    """Long ``[mention]``: flat position of the query that belongs to each mention."""
    flat = {
        "first": [mention.first - 1 for mention in _mentions(plan)],
        "last": [mention.last - 1 for mention in _mentions(plan)],
        "read": [mention.last for mention in _mentions(plan)],
    }[word]
    return torch.tensor(flat, dtype=torch.long, device=plan.device)


def _layout(call: CallView, rows: PickedRows) -> BoxLayout:
    plan = call.plan
    assert plan.key_tokens is not None
    picks = torch.stack([rows.index(_positions(plan, word)) for word in WORDS])
    word, mention = (picks >= 0).nonzero(as_tuple=True)
    pick = picks[word, mention]
    slot = word * plan.examples + rows.picks.example[pick]
    _, allowed = image_maps(call, rows, NAMING)
    boxes = torch.cat([plan.key_tokens.box, torch.full((1, 4), torch.nan)]).to(plan.device)
    keys = boxes[plan.key_index]
    covers = [coverage(keys[named.row], named.boxes) for named in _mentions(plan)]
    known = allowed[pick]
    area = torch.stack([areas(of_row) for of_row in keys])[rows.picks.batch[pick]] * known
    known = known & (area > 0)
    cover = torch.stack(covers)[mention] if covers else area
    order = shuffled_places(plan, rows.picks, allowed, NAMING)[pick]
    # Allowed keys keep to their own places in the permutation; the others go last.
    chance = order.gather(-1, (~known).long().argsort(dim=-1, stable=True))
    return BoxLayout(pick, slot, known, (cover * known).float(), area.float(), chance)
