"""Which kept events of a head are shown: its strongest, its deciles, the ends of components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.exemplars.components import Components
from analysis.atlas.exemplars.events import Events, few_of_each
from analysis.atlas.exemplars.options import ExemplarOptions
from analysis.atlas.exemplars.site_state import SiteState

DECILES = 10
EVENT_KEYS = ("by", "kind", "decile", "rank", "low", "high", "drawn")
COMPONENT_KEYS = ("component", "sign", "rank", "projection")

Chosen = tuple[Events, dict[str, Any]]
"""Events, and columns that say what they are exemplars of (a number for all or one for each)."""


def strongest(state: SiteState, head: int) -> Iterator[Chosen]:
    """The reservoirs of a head, by each criterion."""
    nan = float("nan")
    for by, kept in state.strongest.items():
        lines = kept.events[head]
        lines = lines[lines["order"] >= 0]
        keys = (by, "strongest", 0, np.arange(1, lines.size + 1), nan, nan, 0)
        yield lines, dict(zip(EVENT_KEYS, keys, strict=True))


def deciles(state: SiteState, head: int, how: ExemplarOptions) -> Iterator[Chosen]:
    """A few events of each tenth of the even sample, by each criterion."""
    for by, drawn in state.drawn.events.items():
        lines = drawn[:, head]  # in the order of their keys, which is a random one
        lines = lines[lines["order"] >= 0]
        place = np.empty(lines.size, dtype=np.int64)
        place[np.argsort(lines["order"], kind="stable")] = np.arange(lines.size)
        decile = place * DECILES // max(lines.size, 1) + 1
        values = lines[by]
        for number in np.unique(decile).tolist():
            inside = np.nonzero(decile == number)[0]
            few = _few(lines[inside], how.per_example)[: how.per_decile]
            low, high = float(values[inside].min()), float(values[inside].max())
            rank = np.arange(1, few.size + 1)
            keys = (by, "decile", number, rank, low, high, lines.size)
            yield lines[inside[few]], dict(zip(EVENT_KEYS, keys, strict=True))


def component_ends(
    state: SiteState, head: int, parts: Components, how: ExemplarOptions
) -> Iterator[Chosen]:
    """The events of the even sample that lie farthest out along each component, both ways."""
    lines = state.drawn.events["weight"][:, head]
    there = np.nonzero(lines["order"] >= 0)[0]
    lines = lines[there]
    centred = state.drawn.z[there, head].astype(np.float64) - parts.mean
    for number, direction in enumerate(parts.directions):
        along = centred @ direction / np.sqrt(parts.variances[number])
        for sign in (1, -1):
            outward = np.argsort(-sign * along, kind="stable")
            outward = outward[sign * along[outward] > 0]
            chosen = outward[_few(lines[outward], how.per_example)][: how.component_events]
            rank = np.arange(1, chosen.size + 1)
            keys = (number, sign, rank, along[chosen])
            yield lines[chosen], dict(zip(COMPONENT_KEYS, keys, strict=True))


def _few(lines: Events, per_example: int) -> NDArray[np.int64]:
    """Indices of events in their order, with at most so many of an example."""
    group = np.zeros(lines.size, dtype=np.int64)
    return np.nonzero(few_of_each(group, lines["example"], per_example))[0]
