"""What is known of a prompt's positions, found again at the queries and keys of a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.prompt_parts import prompt_parts
from probes.edits.edit import EditPlace

if TYPE_CHECKING:
    from probes.tokens.map import TowerTokens


@dataclass
class AtImageKeys:
    """A number for each image position of a batch, at the keys of its calls.

    Attributes:
        values: ``[position]``, in the order in which the token map has image positions.
    """

    values: Tensor
    _flat: tuple[TowerTokens, Tensor] | None = field(default=None, repr=False)

    def at(self, place: EditPlace) -> Tensor:
        """``[batch key]`` of a tile, 0 at keys that are no image's."""
        tile, call = place.tile, place.call
        assert tile is not None and call is not None
        key = ("at image keys", id(self), id(call.key_index))
        found = place.shared(key, lambda: self._at_call(place))
        return found[tile.batch, : tile.keys]

    def _at_call(self, place: EditPlace) -> Tensor:
        call = place.call
        assert call is not None
        whole = EditPlace(place.site, place.heads, place.step, call, None, place.moment)
        index = whole.key_index
        tokens = place.tokens[call.key_tower or place.site.tower]
        if self._flat is None or self._flat[0] is not tokens:
            flat = torch.zeros(len(tokens), dtype=self.values.dtype)
            flat[tokens.has_role("image")] = self.values.cpu()
            self._flat = tokens, flat.to(index.device)
        found = self._flat[1][index.clamp_min(0)]
        return found.masked_fill(index < 0, 0)


@dataclass
class WritingRows:
    """The queries whose next token is written: the last one of a prompt, and all behind it.

    In a forward that reads an answer (teacher forcing) those are the queries that would have
    written it, so that an edit of these rows does to a given answer what it does to one that is
    being written.
    """

    _flat: tuple[TowerTokens, Tensor] | None = field(default=None, repr=False)

    def at(self, place: EditPlace) -> Tensor | None:
        """Bool ``[batch row]`` of a tile; None where all rows write: a token is fed back."""
        tile, call = place.tile, place.call
        assert tile is not None and call is not None
        if place.step and call.queries == 1:  # more of them: there is no cache
            return None
        index = place.query_index
        tokens = place.tokens[place.site.tower]
        if self._flat is None or self._flat[0] is not tokens:
            parts = prompt_parts(tokens, place.batch)
            writing = parts.predicting | (parts.deciding & parts.unanswered)
            self._flat = tokens, writing.to(index.device)
        return self._flat[1][index.clamp_min(0)] & (index >= 0)
