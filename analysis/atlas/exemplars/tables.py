"""From what was kept to the four tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.atlas.exemplars.chosen import (
    COMPONENT_KEYS,
    EVENT_KEYS,
    Chosen,
    component_ends,
    deciles,
    strongest,
)
from analysis.atlas.exemplars.components import Components, principal_components
from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atlas.exemplars.pair_codes import pair_name
from analysis.atlas.exemplars.place_store import COLUMNS, PlaceStore
from analysis.atlas.exemplars.result import Exemplars
from analysis.atlas.exemplars.site_state import SiteState
from analysis.atlas.exemplars.space_saving import Heavy
from probes.heads import Head, Site

_VALUES = ("weight", "share", "contribution", "contribution_share")
_HEAD = ("tower", "layer", "head")
_PAIR = (
    "query", "key", "row_offset", "column_offset", "sink", "mass", "error", "chance", "lift",
    "queries", "share",
)  # fmt: skip
_COMPONENT = ("component", "explained", "deviation", "effective", "queries")

Spelt = tuple[dict[int, str], dict[int, str]]


def make_tables(
    states: Mapping[Site, SiteState],
    stores: Mapping[str, PlaceStore],
    names: Mapping[str, dict[int, str]],
    reasons: Mapping[tuple[str, str], str],
    how: ExemplarOptions,
) -> Exemplars:
    """The tables of all layers, in order of tower, layer and head."""
    events, ends = _EventTable(EVENT_KEYS, stores), _EventTable(COMPONENT_KEYS, stores)
    pairs: list[tuple] = []
    components: list[tuple] = []
    for site, state in sorted(states.items()):
        spelt = names[state.tower], names[state.key_tower]
        for number in range(state.heads):
            head = Head(site.tower, site.layer, number)
            for chosen in (*strongest(state, number), *deciles(state, number, how)):
                events.add(head, state, chosen)
            where = (site.tower, site.layer, number)
            pairs += [(*where, *line) for line in _pairs(state.pairs[number], spelt, how)]
            parts = principal_components(state.sums, number, how.components)
            if parts is None:
                continue
            components += [(*where, *line) for line in _components(parts)]
            for chosen in component_ends(state, number, parts, how):
                ends.add(head, state, chosen)
    pair_frame = pd.DataFrame(pairs, columns=pd.Index(_HEAD + _PAIR))
    offsets = ["row_offset", "column_offset"]
    pair_frame[offsets] = pair_frame[offsets].astype("Int64")
    have = {(site.tower, "exemplars") for site in states}
    return Exemplars(
        events.frame(),
        pair_frame,
        pd.DataFrame(components, columns=pd.Index(_HEAD + _COMPONENT)),
        ends.frame(),
        {key: why for key, why in reasons.items() if key not in have},
        how,
    )


class _EventTable:
    """Gathers events of many heads, and writes them out as one frame."""

    def __init__(self, keys: Sequence[str], stores: Mapping[str, PlaceStore]) -> None:
        self._stores = stores
        sides = [f"{side}_{name}" for side in ("query", "key") for name in COLUMNS[1:]]
        self._names = [*_HEAD, *keys, "example", *sides, *_VALUES]
        self._columns: dict[str, list[Any]] = {name: [] for name in (*_HEAD, *keys, *_VALUES)}
        self._places: list[tuple[Any, ...]] = []

    def add(self, head: Head, state: SiteState, chosen: Chosen) -> None:
        lines, about = chosen
        own, other = self._stores[state.tower], self._stores[state.key_tower]
        values = {name: lines[name].astype(np.float64) for name in _VALUES}
        for name, value in (*vars(head).items(), *about.items(), *values.items()):
            each = value.tolist() if isinstance(value, np.ndarray) else [value] * lines.size
            self._columns[name] += each
        for query, key in zip(lines["query"].tolist(), lines["key"].tolist(), strict=True):
            self._places.append(own.place(query) + other.place(key)[1:])

    def frame(self) -> pd.DataFrame:
        sides = [f"query_{name}" for name in COLUMNS] + [f"key_{name}" for name in COLUMNS[1:]]
        frame = pd.DataFrame(self._places, columns=pd.Index(sides))
        frame = frame.rename(columns={"query_example": "example"})
        return pd.concat([frame, pd.DataFrame(self._columns)], axis=1)[self._names]


def _pairs(table: Heavy, spelt: Spelt, how: ExemplarOptions) -> list[tuple]:
    """Lines of `_PAIR`: the heaviest and those with the largest lift, by falling mass."""
    enough = np.nonzero(table.count >= how.fewest_queries)[0]
    lift = table.mass / np.maximum(table.chance, 1e-300)
    by_mass = enough[np.lexsort((table.codes[enough], -table.mass[enough]))]
    by_lift = enough[np.lexsort((table.codes[enough], -lift[enough]))][: how.pairs]
    shown = by_mass[(np.arange(by_mass.size) < how.pairs) | np.isin(by_mass, by_lift)]
    share = table.mass / max(table.total, 1e-300)
    numbers = (table.mass, table.error, table.chance, lift, table.count.astype(np.int64), share)
    words = [tuple(vars(pair_name(code, *spelt)).values()) for code in table.codes[shown].tolist()]
    values = zip(*(column[shown].tolist() for column in numbers), strict=True)
    return [(*word, *line) for word, line in zip(words, values, strict=True)]


def _components(parts: Components) -> list[tuple]:
    """Lines of `_COMPONENT`."""
    return [
        (number, float(parts.explained[number]), float(np.sqrt(parts.variances[number])),
         parts.effective, parts.count)
        for number in range(parts.directions.shape[0])
    ]  # fmt: skip
