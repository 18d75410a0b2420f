"""All that is kept of the heads of one attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.atlas.exemplars.components import OutputSums
from analysis.atlas.exemplars.drawn import Drawn
from analysis.atlas.exemplars.events import EVENT, Events, ordered
from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atlas.exemplars.pairs import PairIndex
from analysis.atlas.exemplars.place_store import BatchPlaces
from analysis.atlas.exemplars.row_events import RowEvents
from analysis.atlas.exemplars.space_saving import Heavy
from analysis.atlas.exemplars.strongest import Strongest
from analysis.call_plan import CallPlan
from probes.attention_call import AttentionCall


@dataclass(frozen=True)
class SiteState:
    """Exemplars of one layer so far; adding a call gives a new state and leaves this one alone.

    Attributes:
        tower, key_tower: whose positions queries and keys are.
        strongest: criterion -> reservoir.
        pairs: one table per head.
    """

    tower: str
    key_tower: str
    strongest: dict[str, Strongest]
    drawn: Drawn
    pairs: tuple[Heavy, ...]
    sums: OutputSums

    @classmethod
    def none(
        cls, call: AttentionCall, plan: CallPlan, criteria: tuple[str, ...], how: ExemplarOptions
    ) -> SiteState:
        assert plan.tokens is not None and plan.key_tokens is not None
        heads, width = call.heads, call.z.shape[-1]
        return cls(
            plan.tokens.tower,
            plan.key_tokens.tower,
            {name: Strongest.none(heads, how.strongest, how.per_example) for name in criteria},
            Drawn.none(how.sample, heads, width, criteria),
            tuple(Heavy.none(how.pair_capacity) for _ in range(heads)),
            OutputSums.none(heads, width),
        )

    @property
    def heads(self) -> int:
        return len(self.pairs)

    @property
    def criteria(self) -> tuple[str, ...]:
        return tuple(self.strongest)

    def references(self, tower: str) -> list[NDArray[np.int64]]:
        """All places of a tower that events refer to."""
        events = [kept.events.ravel() for kept in self.strongest.values()]
        events += [kept.ravel() for kept in self.drawn.events.values()]
        names = [n for n, t in (("query", self.tower), ("key", self.key_tower)) if t == tower]
        return [part[name] for part in events for name in names]

    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = [kept.events for kept in self.strongest.values()]
        arrays += [self.drawn.keys, self.drawn.z, *self.drawn.events.values()]
        arrays += [self.sums.count, self.sums.total, self.sums.products]
        for table in self.pairs:
            arrays += [table.codes, table.mass, table.chance, table.count, table.error]
        return sum(array.nbytes for array in arrays)

    def with_call(
        self,
        call: AttentionCall,
        plan: CallPlan,
        events: dict[str, RowEvents],
        pairs: PairIndex,
        masses: Tensor,
        places: tuple[BatchPlaces, BatchPlaces],
        used: Tensor,
    ) -> SiteState:
        """The state with one more call.

        Args:
            masses: float32 ``[head pair]``.
            places: of queries and of keys.
            used: bool ``[batch query]``: queries that count.
        """
        batch, query = used.cpu().numpy().nonzero()
        flat = plan.query_index.cpu().numpy()[batch, query]
        lines = {
            name: _lines(found, plan, places, batch, query, flat, by=name)
            for name, found in events.items()
        }
        keys = places[0].keys[flat]
        few = self.drawn.entering(keys)
        # A query without a key outside sinks is no event, and its z tells of no role.
        counted = used[:, None] & (events["weight"].key >= 0)
        at = (torch.from_numpy(part[few]).to(call.device) for part in (batch, query))
        z = call.z.transpose(1, 2)[tuple(at)].detach().float().cpu().numpy()
        return SiteState(
            self.tower,
            self.key_tower,
            {name: kept.with_events(lines[name].T) for name, kept in self.strongest.items()},
            self.drawn.with_queries(keys[few], {n: line[few] for n, line in lines.items()}, z),
            _with_masses(self.pairs, pairs, masses),
            self.sums + OutputSums.of(call.z, counted),
        )


def _lines(
    found: RowEvents,
    plan: CallPlan,
    places: tuple[BatchPlaces, BatchPlaces],
    batch: NDArray[np.int64],
    query: NDArray[np.int64],
    flat: NDArray[np.int64],
    by: str,
) -> Events:
    """`EVENT` ``[query head]`` of the queries that count."""

    def of(values: Tensor) -> NDArray:
        return values.cpu().numpy()[batch, :, query]

    own, other = places
    key = of(found.key)
    lines = np.empty(key.shape, dtype=EVENT)
    for name in ("weight", "share", "contribution", "contribution_share"):
        lines[name] = of(getattr(found, name))
    key_flat = plan.key_index.cpu().numpy()[batch[:, None], np.maximum(key, 0)]
    lines["query"] = (own.first + flat)[:, None]
    lines["key"] = np.where(key >= 0, other.first + key_flat, -1)
    lines["example"] = own.examples[flat][:, None]
    order = ordered(lines[by], np.broadcast_to(own.keys[flat][:, None], key.shape))
    lines["order"] = np.where(key >= 0, order, -1)
    return lines


def _with_masses(tables: tuple[Heavy, ...], pairs: PairIndex, masses: Tensor) -> tuple[Heavy, ...]:
    rows = masses.double().cpu().numpy()
    return tuple(
        table.with_batch(pairs.codes, row, pairs.chance, pairs.queries)
        for table, row in zip(tables, rows, strict=True)
    )
