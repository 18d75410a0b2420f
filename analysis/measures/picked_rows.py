"""Whole rows of a few queries: kept while a call streams by, for what no product can give.

Several measures look at the image map of single queries (CLS, the position that decides the
answer, an object's word). Each row is copied once, whichever of them want it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.tile_view import TileView
from probes.tokens.map import ROLES

_IMAGE = ROLES.index("image")


@dataclass
class Picks:
    """Some queries of a call, in order.

    Attributes:
        batch, query: long ``[pick]``: places on the call's axes.
        example: long ``[pick]``.
    """

    batch: Tensor
    query: Tensor
    example: Tensor

    def __len__(self) -> int:
        return self.batch.numel()

    def per_example(self, values: Tensor, examples: int) -> Tensor:
        """Float64 ``[example head]``: the sum of ``[pick head]`` over each example's picks."""
        total = values.new_zeros(examples, values.shape[1], dtype=torch.float64)
        return total.index_add_(0, self.example, values.double())


class PickedRows:
    """The rows of some queries; ``values`` is there once the last tile has passed."""

    def __init__(self, picker: _Picker, name: str) -> None:
        self._picker, self._name = picker, name

    @property
    def picks(self) -> Picks:
        return self._picker.picks(self._name)

    @property
    def values(self) -> Tensor:
        """Float32 ``[pick head key]``."""
        return self._picker.rows(self._name)

    def index(self, flat: Tensor) -> Tensor:
        """Long: which pick shows each of some flat positions of the token map, -1 for none."""
        slots = self._picker.own_slots(self._name)
        batch, query = places_of(self._picker.plan)[flat].unbind(-1)
        return torch.where(batch >= 0, slots[batch, query], -1)


def pick_rows(call: CallView, name: str, where: Tensor) -> PickedRows:
    """Ask a call for the rows of the queries in ``where``, bool ``[batch query]``.

    Args:
        name: of the set of queries; the same name always means the same set.
    """
    if "picked rows" not in call.shared:
        call.shared["picked rows"] = _Picker(call)
    return call.shared["picked rows"].want(name, where)


def places_of(plan: CallPlan) -> Tensor:
    """Long ``[n 2]``: batch row and query of each flat position, -1 where the call has none."""

    def find() -> Tensor:
        assert plan.tokens is not None
        where = torch.full((len(plan.tokens), 2), -1, device=plan.device)
        batch, query = (plan.query_index >= 0).nonzero(as_tuple=True)
        where[plan.query_index[batch, query]] = torch.stack([batch, query], dim=-1)
        return where

    return plan.memo("places of positions", find)


def queries_at(plan: CallPlan, flat: Tensor) -> Tensor:
    """Bool ``[batch query]``: the queries that are at some flat positions."""
    chosen = torch.zeros_like(plan.used)
    places = places_of(plan)[flat]
    batch, query = places[places[:, 0] >= 0].unbind(-1)
    chosen[batch, query] = True
    return chosen


def image_maps(call: CallView, rows: PickedRows, name: str) -> tuple[Tensor, Tensor]:
    """Float32 ``[pick head key]``, 0 but at image keys, and which image keys each may read.

    The second is bool ``[pick key]``.
    """
    plan = call.plan

    def readable() -> Tensor:
        picks = rows.picks
        image = (plan.of_keys("role") == _IMAGE)[picks.batch]
        uniform = pick_rows(call.uniform, name, _nowhere(plan)).values[:, 0]
        return image & (uniform > 0)

    allowed = plan.memo(("image keys", name), readable)
    return rows.values * allowed[:, None], allowed


def shuffled_places(plan: CallPlan, picks: Picks, allowed: Tensor, name: str) -> Tensor:
    """Long ``[pick key]``: a permutation of each row's allowed keys; the others stay.

    It depends on the example alone, so batches do not matter: for nulls with the same weights at
    other places.
    """

    def draw() -> Tensor:
        keys = allowed.shape[1]
        place = torch.arange(keys).repeat(len(picks), 1)
        for index, example in enumerate(picks.example.tolist()):
            mine = allowed[index].nonzero()[:, 0].cpu()
            known = "" if plan.batch is None else plan.batch.examples[example].id
            digest = blake2b(known.encode("utf-8", "surrogatepass"), digest_size=7)
            dice = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little"))
            place[index, mine] = mine[torch.randperm(len(mine), generator=dice)]
        return place.to(allowed.device)

    return plan.memo(("shuffled places", name), draw)


class _Picker:
    def __init__(self, call: CallView) -> None:
        self._call, self.plan = call, call.plan
        self._wanted: dict[str, Tensor] = {}
        self._buffer: Tensor | None = None
        call.each(self._read)

    def want(self, name: str, where: Tensor) -> PickedRows:
        self._wanted.setdefault(name, where)
        return PickedRows(self, name)

    def picks(self, name: str) -> Picks:
        def find() -> Picks:
            batch, query = self._chosen(name).nonzero(as_tuple=True)
            return Picks(batch, query, self.plan.of_queries("example")[batch, query])

        return self.plan.memo(("picks", name), find)

    def own_slots(self, name: str) -> Tensor:
        """Long ``[batch query]``: which pick of a set a query is, -1 for none."""

        def find() -> Tensor:
            picks = self.picks(name)
            slots = torch.full(self.plan.used.shape, -1, device=self.plan.device)
            slots[picks.batch, picks.query] = torch.arange(len(picks), device=self.plan.device)
            return slots

        return self.plan.memo(("own slots", name), find)

    def rows(self, name: str) -> Tensor:
        picks = self.picks(name)
        if self._buffer is None:
            return torch.zeros(0, self._call.heads, self._call.keys, device=self.plan.device)
        slots, _, _ = self._slots()
        return self._buffer[slots[picks.batch, picks.query]]

    def _chosen(self, name: str) -> Tensor:
        return self._wanted[name] & self.plan.used

    def _slots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Long ``[batch query]`` place in the buffer, and batch and query of each place."""

        def find() -> tuple[Tensor, Tensor, Tensor]:
            union = torch.stack([self._chosen(name) for name in self._wanted]).any(0)
            batch, query = union.nonzero(as_tuple=True)
            slots = torch.full(union.shape, -1, device=union.device)
            slots[batch, query] = torch.arange(len(batch), device=union.device)
            return slots, batch, query

        return self.plan.memo(("slots", *self._wanted), find)

    def _read(self, tile: TileView) -> None:
        _, batch, query = self._slots()
        if not len(batch):
            return
        if self._buffer is None:
            shape = len(batch), self._call.heads, self._call.keys
            self._buffer = torch.zeros(shape, device=self.plan.device)
        here = (batch >= tile.batch.start) & (batch < tile.batch.stop)
        here &= (query >= tile.rows.start) & (query < tile.rows.stop)
        mine = here.nonzero()[:, 0]
        if len(mine):
            own = batch[mine] - tile.batch.start, query[mine] - tile.rows.start
            self._buffer[mine, :, : tile.keys] = tile.pattern[own[0], :, own[1]]


def _nowhere(plan: CallPlan) -> Tensor:
    return torch.zeros_like(plan.used)
