"""Forbid query-key pairs, by position or by role: text may not read the image, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probes.edits.edit import EditPlace
from probes.masks import MASKED_SCORE


@dataclass(frozen=True)
class KnockOut:
    """Scores of the forbidden pairs become minus infinity, so the other keys share their weight.

    A query that may read nothing any more gives out zero.
    """

    heads: Any
    queries: Any
    keys: Any
    stage: Literal["scores"] = "scores"

    @property
    def label(self) -> str:
        return f"knock_out({_words(self.queries)} -> {_words(self.keys)})"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        queries = self._chosen(self.queries, place, is_query=True).to(values.device)
        keys = self._chosen(self.keys, place, is_query=False).to(values.device)
        return values.masked_fill(queries[:, None, :, None] & keys[:, None, None, :], MASKED_SCORE)

    def _chosen(self, wanted: Any, place: EditPlace, *, is_query: bool) -> Tensor:
        """Bool ``[batch or 1, position]``."""
        tile, call = place.tile, place.call
        assert tile is not None and call is not None
        rows = torch.arange(tile.rows.start, tile.rows.stop)
        positions = rows if is_query else torch.arange(tile.keys)
        if wanted is None:
            return torch.ones(1, len(positions), dtype=torch.bool)
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        if all(isinstance(name, str) for name in names):
            return place.queries_with(*names) if is_query else place.keys_with(*names)
        index = call.query_index if is_query else call.key_index
        if place.step and index is not None:
            # A window's cache holds the last keys only; row 0 of the map begins at 0.
            positions = index[0].cpu()[positions]
        elif is_query and call.key_tower == place.site.tower:
            positions = positions + call.keys - call.queries
        return torch.isin(positions, torch.tensor([int(n) for n in names]))[None]


def knock_out(
    heads: Any,
    queries: str | Sequence[str] | Sequence[int] | None = None,
    keys: str | Sequence[str] | Sequence[int] | None = None,
) -> KnockOut:
    """Forbid heads to read some keys from some queries, by role names or by positions.

    Args:
        queries, keys: role names (``"text"``, ``["image", "cls"]``), positions in the sequence,
            or None for all.

    >>> knock_out("language.*", queries="text", keys="image").label
    'knock_out(text -> image)'
    """
    return KnockOut(heads, queries, keys)


def _words(wanted: Any) -> str:
    if wanted is None:
        return "all"
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    return "+".join(str(name) for name in names[:4]) + ("+..." if len(names) > 4 else "")
