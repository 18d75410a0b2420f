"""One attention call of a model: query, key, value, mask and scale, read tile by tile.

Every softmax attention is ``z = softmax(query @ key.T * scale + mask) @ value``. An
`AttentionCall` holds the tensors of one such call while the model runs and gives out its pattern
in *tiles* (a block of query rows against all keys that those rows may read), so that the whole
query x key matrix exists only where somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.heads import Site
from probes.masks import MASKED_SCORE, AttentionMask

if TYPE_CHECKING:
    from probes.moment import Moment

TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Pattern entries per tile. On a CPU a tile and its few copies should stay in the cache."""
_FEWEST_ROWS = 16
_MOST_ROWS = {"cpu": 64, "cuda": 1024}


@dataclass
class Tile:
    """A block of query rows of the pattern of one call.

    Attributes:
        call: the call that it belongs to.
        batch: which rows of the call's batch axis.
        rows: which queries.
        pattern: float32 ``[batch head row key]`` after all edits; rows sum to 1 (0 where a query
            may read nothing). Keys start at 0 and stop where no row of the tile may read on.
        scores: float32, same shape, before the softmax, forbidden pairs at -1e30; ``None`` where
            the model wrote out its own softmax or an edit changed the pattern.
    """

    call: AttentionCall
    batch: slice
    rows: slice
    pattern: Tensor
    scores: Tensor | None = None

    @property
    def keys(self) -> int:
        """Number of keys in the tile: keys ``0`` to ``keys - 1``."""
        return self.pattern.shape[-1]

    @cached_property
    def row_max(self) -> Tensor:
        """Float ``[batch head row]``: the largest weight of each row."""
        return self.pattern.amax(-1)

    @cached_property
    def entropy_nats(self) -> Tensor:
        """Float ``[batch head row]``: ``-sum p log p``; from scores where they are known.

        With scores s: ``-sum p log p = log Z - sum p s`` and ``log Z = max s - log max p``.
        """
        if self.scores is None:
            return torch.special.entr(self.pattern).sum(-1)
        log_z = self.scores.amax(-1) - self.row_max.clamp_min(1e-38).log()
        entropy = log_z - torch.linalg.vecdot(self.pattern, self.scores)
        return entropy.clamp_min_(0).masked_fill_(self.row_max == 0, 0.0)

    def allowed(self) -> Tensor:
        """Bool ``[batch or 1, head or 1, row, key]``: which pairs may attend."""
        return self.call.allowed(self.batch, self.rows, self.keys)


TileEdit = Callable[[Tile, Tensor], Tensor]
"""Takes a tile and its scores or pattern ``[batch head row key]``; returns the new ones."""


@dataclass
class AttentionCall:
    """One attention call, valid while the model runs it.

    ``query`` and ``key`` are ``None`` where the model wrote out its own softmax: then ``whole``
    is the pattern. Keys and values may have fewer heads than queries (GQA, MQA).

    Attributes:
        query_index, key_index: long ``[batch query]`` and ``[batch key]``: flat position of each
            query and key in the token map of the site's tower (keys of a cross call in the token
            map ``key_tower``), -1 where it is not known.
        step: 0 for the prompt (or a plain forward), n for the n-th generated token.
        z: ``[batch head query value_width]`` what heads give out, after edits, model dtype.
    """

    site: Site
    path: str
    ordinal: int
    value: Tensor
    z: Tensor
    mask: AttentionMask
    query: Tensor | None = None
    key: Tensor | None = None
    scale: float = 1.0
    whole: Tensor | None = None
    query_index: Tensor | None = None
    key_index: Tensor | None = None
    key_tower: str = ""
    step: int = 0
    score_edits: list[TileEdit] = field(default_factory=list)
    pattern_edits: list[TileEdit] = field(default_factory=list)
    compute_dtype: torch.dtype | None = None
    """What the kernel casts to under autocast; queries and keys are rounded to it first."""
    moment: Moment | None = None
    """What all layers of this forward share: batch, token map."""
    counting: bool = False
    """Whether edits count what they touch: once per call, not for every reading of its tiles."""
    changed: Tensor | None = None
    """Bool ``[batch head query]``: rows that edits of scores or patterns have changed."""

    @property
    def batch(self) -> int:
        return self.z.shape[0]

    @property
    def heads(self) -> int:
        return self.z.shape[1]

    @property
    def queries(self) -> int:
        return self.mask.queries

    @property
    def keys(self) -> int:
        return self.mask.keys

    @property
    def kv_heads(self) -> int:
        return self.value.shape[1]

    @property
    def device(self) -> torch.device:
        return self.z.device

    def allowed(self, batch: slice, rows: slice, keys: int) -> Tensor:
        """Bool ``[batch or 1, head or 1, row, key]``: which pairs may attend.

        A softmax that the model wrote out shows no mask: there a pair counts as allowed if its
        weight is not 0.
        """
        if self.whole is not None:
            return self.whole[batch, :, rows, :keys] > 0
        return self.mask.allowed(batch, rows, keys)

    def tiles(self, *, rows: int | None = None) -> Iterator[Tile]:
        """The pattern in tiles of at most ``rows`` query rows (default: what fits the cache)."""
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        budget = TILE_ELEMENTS[kind]
        per_row = self.heads * self.keys
        most = _MOST_ROWS[kind] if rows is None else rows
        chunk = max(1, min(self.batch, budget // max(per_row * min(most, self.queries), 1)))
        if rows is None:
            most = min(most, max(_FEWEST_ROWS, budget // max(per_row * chunk, 1)))
        for first in range(0, self.batch, chunk):
            batch = slice(first, min(first + chunk, self.batch))
            for start in range(0, self.queries, most):
                yield self._tile(batch, slice(start, min(start + most, self.queries)))

    def last_tile(self) -> Tile:
        """The last query of every row: what the next token is decided on."""
        return self._tile(slice(0, self.batch), slice(self.queries - 1, self.queries))

    def pattern_of(self, rows: slice) -> Tensor:
        """Float32 ``[batch head row key]``: some query rows, after all edits, over all keys."""
        tile = self._tile(slice(0, self.batch), rows)
        return torch.nn.functional.pad(tile.pattern, (0, self.keys - tile.keys))

    def pattern(self, heads: Sequence[int] | None = None) -> Tensor:
        """Float32 ``[batch head query key]``: the whole pattern, all heads or the given ones."""
        chosen = list(range(self.heads)) if heads is None else list(heads)
        shape = (self.batch, len(chosen), self.queries, self.keys)
        full = torch.zeros(shape, device=self.device)
        for tile in self.tiles():
            full[tile.batch, :, tile.rows, : tile.keys] = tile.pattern[:, chosen]
        return full

    def weighted_values(self, *, counting: bool = False) -> Tensor:
        """Float32 ``[batch head query value_width]``: pattern @ value, after all edits."""
        value = self.value.float()
        parts: dict[int, list[Tensor]] = {}
        self.counting = counting
        for tile in self.tiles():
            parts.setdefault(tile.batch.start, []).append(
                _grouped(tile.pattern, value[tile.batch, :, : tile.keys])
            )
        self.counting = False
        rows = [
            blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2) for blocks in parts.values()
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def note_changed(self, tile: Tile, heads: Sequence[int] | None, differs: Tensor) -> None:
        """Keep which rows of a tile an edit changed: bool ``[batch head row]`` of these heads.

        Args:
            heads: None means all.
        """
        if self.changed is not None:
            block = self.changed[tile.batch, :, tile.rows]
            if heads is None:
                block |= differs
            else:
                block[:, list(heads)] |= differs

    def worst_mismatch(self) -> float:
        """Largest ``|pattern @ value - z|`` over queries that may read something.

        In units of the largest ``|value|``: 1e-6 is rounding in float32, 1e-2 in bfloat16.
        """
        value, worst = self.value.float(), 0.0
        for tile in self.tiles():
            expected = _grouped(tile.pattern, value[tile.batch, :, : tile.keys])
            difference = (expected - self.z[tile.batch, :, tile.rows].float()).abs().amax(-1)
            worst = max(worst, float(difference.masked_fill(tile.row_max == 0, 0.0).amax()))
        return worst / float(value.abs().amax().clamp_min(1e-12))

    def spot_mismatch(self) -> float | None:
        """`worst_mismatch` of the last few queries of a few examples only: a cheap proof.

        None where these queries may read nothing, so that nothing was proven.
        """
        rows = slice(max(0, self.queries - 4), self.queries)
        some = slice(0, min(self.batch, 4))
        tile = self._tile(some, rows)
        value = self.value[some, :, : tile.keys].float()
        difference = (_grouped(tile.pattern, value) - self.z[some, :, rows].float()).abs().amax(-1)
        empty = tile.row_max == 0
        if bool(empty.all()):
            return None
        difference = difference.masked_fill(empty, 0.0)
        return float(difference.detach().amax() / value.detach().abs().amax().clamp_min(1e-12))

    def _tile(self, batch: slice, rows: slice) -> Tile:
        end = self.mask.key_end(rows)
        if self.whole is not None:
            pattern = self.whole[batch, :, rows, :end].float()
            tile = Tile(self, batch, rows, pattern)
            if self.score_edits:
                tile.pattern = self._edit_log_pattern(tile)
            return self._edit_pattern(tile)
        scores = _grouped(self._query(batch, rows), self._key[batch, :, :end].transpose(-1, -2))
        self.mask.apply_(scores, batch, rows)
        tile = Tile(self, batch, rows, scores, scores)
        for edit in self.score_edits:
            scores = edit(tile, scores)
        tile.pattern, tile.scores = torch.softmax(scores, dim=-1), scores
        if self._may_be_empty or self.score_edits:
            empty = scores.amax(-1, keepdim=True) <= MASKED_SCORE / 2
            # Not in place where gradients flow: a softmax keeps its result for them.
            fill = Tensor.masked_fill if tile.pattern.requires_grad else Tensor.masked_fill_
            tile.pattern = fill(tile.pattern, empty, 0.0)
        return self._edit_pattern(tile)

    def _edit_pattern(self, tile: Tile) -> Tile:
        for edit in self.pattern_edits:
            tile.pattern, tile.scores = edit(tile, tile.pattern), None
        return tile

    def _edit_log_pattern(self, tile: Tile) -> Tensor:
        # log p equals the scores up to a constant per row, which the softmax does not see. What a
        # row lacks to 1 (a learned sink) is kept as one more column that no edit touches.
        rest = (1 - tile.pattern.sum(-1, keepdim=True)).clamp_min(0.0)
        rest = rest.masked_fill(rest < 1e-5, 0.0)
        scores = _log(tile.pattern)
        tile.scores = scores
        for edit in self.score_edits:
            scores = edit(tile, scores)
        tile.scores = None
        full = torch.cat([scores, _log(rest)], dim=-1)
        empty = scores.amax(-1, keepdim=True) <= MASKED_SCORE / 2
        return torch.softmax(full, dim=-1)[..., :-1].masked_fill(empty, 0.0)

    @cached_property
    def _may_be_empty(self) -> bool:
        return self.mask.tensor is not None

    def _query(self, batch: slice, rows: slice) -> Tensor:
        # Scaled block by block: a scaled copy of all queries would grow with their number.
        assert self.query is not None
        query = self.query[batch, :, rows]
        if self.compute_dtype is not None:
            query = query.to(self.compute_dtype)
        return query.float() * self.scale

    @cached_property
    def _key(self) -> Tensor:
        assert self.key is not None
        key = self.key if self.compute_dtype is None else self.key.to(self.compute_dtype)
        return key.float().contiguous()


def _log(weights: Tensor) -> Tensor:
    """Logarithm, `MASKED_SCORE` of 0; its gradient at 0 is 0, where that of a plain one is NaN."""
    return weights.masked_fill(weights == 0, 1.0).log().masked_fill(weights == 0, MASKED_SCORE)


def _grouped(left: Tensor, right: Tensor) -> Tensor:
    """``left [batch head row a] @ right [batch kv_head a b]``, each kv head serving its group."""
    heads, kv_heads = left.shape[1], right.shape[1]
    if heads == kv_heads:
        return torch.matmul(left, right)
    batch, _, rows, width = left.shape
    packed = left.reshape(batch, kv_heads, heads // kv_heads * rows, width)
    return torch.matmul(packed, right).reshape(batch, heads, rows, right.shape[-1])
