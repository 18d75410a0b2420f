"""One pass over the data that keeps, for every head, what it does: the strongest and the usual."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atlas.exemplars.pairs import pair_index, pair_masses
from analysis.atlas.exemplars.place_store import BatchPlaces, PlaceStore
from analysis.atlas.exemplars.reach import reach_of
from analysis.atlas.exemplars.row_events import CRITERIA, row_events, value_norms
from analysis.atlas.exemplars.sink_keys import outside_sinks
from analysis.atlas.exemplars.site_state import SiteState
from analysis.atlas.exemplars.tables import Exemplars, make_tables
from analysis.call_plan import CallPlan
from analysis.plan_cache import PlanCache
from probes.attention_call import AttentionCall, Tile
from probes.heads import Site
from probes.layout import SiteLayout

if TYPE_CHECKING:
    from probes.inputs import Batch

HELD_ENTRIES = 1 << 24
"""Calls with a larger pattern are read tile by tile twice instead of being held (64 MiB)."""


class _Anatomy(Protocol):
    def output_matrix(self, site: Site) -> Tensor | None: ...


class _Layout(Protocol):
    @property
    def anatomy(self) -> _Anatomy: ...
    def site(self, site: Site) -> SiteLayout: ...


class ExemplarCollector:
    """Listens to attention calls, batch after batch, in memory that does not grow with the data.

    Use: ``start_batch(batch)``, run the model with ``listener`` attached, ``finish_batch()``; at
    the end ``exemplars()``. A batch that fails before ``finish_batch`` leaves nothing behind.

    An *event* is a query and the key outside sinks (`sink_keys`) that it reads most, by weight or
    by contribution ``p |v W_O|`` (Kobayashi et al., EMNLP 2020, with the output matrix). What is
    kept is chosen by values and by keys drawn from example ids and positions, so that batch size
    and order change nothing but rounding; only pair tables that overflow (`space_saving`) may
    change, by no more than the error that they state.

    Args:
        layout: of the subject; its anatomy gives output matrices. ``None``: no contributions.
        how: what is kept.
    """

    def __init__(self, layout: _Layout | None, how: ExemplarOptions | None = None) -> None:
        self.how = how or ExemplarOptions()
        self._layout = layout
        self._grams: dict[Site, Tensor | None] = {}
        self._stores: dict[str, PlaceStore] = {}
        self._names: dict[str, dict[int, str]] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._states: dict[Site, SiteState] = {}
        self._cache: PlanCache | None = None
        self._abandon()

    def start_batch(self, batch: Batch) -> None:
        """Forget an unfinished batch and expect this one."""
        self._abandon()
        self._batch = batch
        self._cache = PlanCache(batch.tokens, batch.size)

    def listener(self, call: AttentionCall) -> None:
        """Take in one call. Attach this to the tap.

        Raises:
            RuntimeError: if no batch was started.
        """
        if self._cache is None:
            raise RuntimeError("A batch must be started before calls arrive. Call start_batch().")
        with torch.no_grad():
            plan, _ = self._cache.find(call)
            why = self._refusal(call, plan)
            if why or isinstance(plan, str):
                self._new_reasons[call.site.tower, "exemplars"] = why
                return
            self._take(call, plan)

    def finish_batch(self) -> None:
        """Keep what the calls of the batch gave.

        Raises:
            ValueError: the attention of some layer was NaN or infinite; nothing is kept.
        """
        if self._broken:
            site = self._broken[0]
            self._abandon()
            raise ValueError(
                f"The attention output of {site} must be finite, got NaN or infinity. Check the "
                "weights, or load the model with dtype='float32'."
            )
        self._states.update(self._pending)
        self._reasons.update(self._new_reasons)
        for tower, places in self._places.items():
            states = self._states.values()
            live = [part for state in states for part in state.references(tower)]
            self._stores[tower].remember(places, live)
            self._learn(tower, places)
        self._abandon()

    def exemplars(self) -> Exemplars:
        """The tables of all batches so far."""
        return make_tables(self._states, self._stores, self._names, self._reasons, self.how)

    def memory(self) -> dict[str, int]:
        """What is held: ``bytes`` of arrays and number of ``places`` with their text."""
        return {
            "bytes": sum(state.nbytes() for state in self._states.values()),
            "places": sum(len(store) for store in self._stores.values()),
        }

    def _abandon(self) -> None:
        self._batch: Batch | None = None
        self._cache = None
        self._pending: dict[Site, SiteState] = {}
        self._places: dict[str, BatchPlaces] = {}
        self._new_reasons: dict[tuple[str, str], str] = {}
        self._broken: list[Site] = []

    def _refusal(self, call: AttentionCall, plan: CallPlan | str) -> str:
        """Why a call gives no exemplars, empty if it does."""
        if isinstance(plan, str):
            return plan
        tower = call.site.tower
        if plan.tokens is None or plan.key_tokens is None:
            return (
                f"The positions of {tower} are not known in its attention calls, so there are no "
                "exemplars of it."
            )
        if call.step:
            return (
                "A generated token is one query, of which sinks cannot be told, so it gives no "
                "exemplars. Run the finished text in one forward."
            )
        if self._layout is not None and self._layout.site(call.site).row_sums == "any":
            return (
                f"The heads of {tower} are mixed after the softmax, so rows of a pattern are no "
                "distributions and there are no exemplars of it."
            )
        return ""

    def _take(self, call: AttentionCall, plan: CallPlan) -> None:
        site, how = call.site, self.how
        own, other = plan.tokens, plan.key_tokens
        assert own is not None and other is not None
        gram = self._gram(call)
        places = self._places_of(own.tower), self._places_of(other.tower)
        reach = reach_of(plan)
        held = call.batch * call.heads * call.queries * call.keys <= HELD_ENTRIES
        tiles: Iterable[Tile] | None = list(call.tiles()) if held else None
        keep = outside_sinks(call, tiles or call.tiles(), reach, how.sink)
        norms = None if gram is None else value_norms(call, gram)
        events = row_events(call, tiles or call.tiles(), keep, norms)
        pairs = pair_index(plan, reach, places[0], how.pair_budget)
        masses = pair_masses(call, tiles or call.tiles(), pairs)
        if not _finite(call, events["weight"].weight, reach.used):
            self._broken.append(site)
            return
        state = self._pending.get(site, self._states.get(site))
        if state is None:
            state = SiteState.none(call, plan, tuple(events), how)
        self._pending[site] = state.with_call(call, plan, events, pairs, masses, places, reach.used)

    def _places_of(self, tower: str) -> BatchPlaces:
        if tower not in self._places:
            assert self._batch is not None
            store = self._stores.setdefault(tower, PlaceStore(self.how.window, self.how.seed))
            ids = [example.id for example in self._batch.examples]
            self._places[tower] = store.open(self._batch.tokens[tower], ids)
        return self._places[tower]

    def _gram(self, call: AttentionCall) -> Tensor | None:
        """Float32 ``[head width width]``: W_O W_O^T, or None with the reason noted."""
        site = call.site
        if site not in self._grams:
            matrix = None if self._layout is None else self._layout.anatomy.output_matrix(site)
            if matrix is not None:
                matrix = matrix.detach().float()
                matrix = matrix @ matrix.transpose(-1, -2)
            self._grams[site] = matrix
        gram = self._grams[site]
        if gram is None or gram.shape[:2] != (call.heads, call.value.shape[-1]):
            self._new_reasons[site.tower, CRITERIA[1]] = (
                f"The output matrix of {site.tower} could not be found and verified, so its "
                "exemplars are by weight only."
            )
            return None
        return gram

    def _learn(self, tower: str, places: BatchPlaces) -> None:
        """Remember how token ids are written: as many as the vocabulary has, not the data."""
        tokens, names = places.tokens, self._names.setdefault(tower, {})
        if tokens.text:
            ids, first = np.unique(tokens.ids.numpy(), return_index=True)
            for token, index in zip(ids.tolist(), first.tolist(), strict=True):
                names.setdefault(token, tokens.text[index])


def _finite(call: AttentionCall, weight: Tensor, used: Tensor) -> bool:
    """Whether weights and z of every query that counts are finite."""
    fine = torch.isfinite(weight)
    # Head by head: of a long text, a copy of z is larger than all that is kept.
    for head in range(call.heads):
        fine[:, head] &= torch.isfinite(call.z[:, head]).all(-1)
    return bool((fine | ~used[:, None]).all())
