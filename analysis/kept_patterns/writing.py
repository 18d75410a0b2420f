"""Listen to one forward of one example and keep the patterns of every site in little room."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.atomic_file import written_atomically
from analysis.kept_patterns.form import is_whole

if TYPE_CHECKING:
    from torch import Tensor

    from probes.attention_call import AttentionCall, Tile
    from probes.heads import Site
    from probes.layout import Layout
    from probes.tokens.map import TokenMap


class TooLarge(RuntimeError):
    """The patterns of an example take more room than there is."""


@dataclass
class _SitePatterns:
    """What was heard of one site: blocks of query rows, keys numbered through."""

    columns: int
    named_queries: bool
    named_keys: bool
    whole: bool
    lossless: bool
    key_tower: str
    queries: list[NDArray[np.int64]] = field(default_factory=list)
    weights: list[NDArray[np.float16]] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    rows: int = 0


class PatternKeeper:
    """A listener for `probes.listening.listen`; holds tiles only while it reads them.

    Queries and keys are numbered by their flat position in the token map of their tower; those of
    which none is known (a resampler's learned queries) in the order in which they come. Keys that
    stand for padding of a window are left out, and so is their weight.

    Args:
        tokens: of the one example that is run.
        strongest: keys per query that are kept; None for all.
        room: bytes after which it gives up.

    Attributes:
        nbytes: what is held so far.
        lossless: whether all weights of all sites so far are.

    Raises:
        TooLarge: from within the forward, as soon as there is no room.
    """

    def __init__(self, layout: Layout, tokens: TokenMap, strongest: int | None, room: int) -> None:
        self._layout, self._tokens = layout, tokens
        self._strongest, self._room = strongest, room
        self._sites: dict[Site, _SitePatterns] = {}
        self.nbytes = 0
        self.lossless = True

    def listen(self, call: AttentionCall) -> None:
        """Keep one attention call."""
        if call.step:
            return
        queries, keys = _numbers(call.query_index), _numbers(call.key_index)
        known = self._sites.get(call.site)
        if known is None:
            known = self._sites[call.site] = self._begin(call, queries, keys)
        rows = (
            queries
            if known.named_queries and queries is not None
            else _count(known.rows, call.batch, call.queries)
        )
        columns = (
            keys
            if known.named_keys and keys is not None
            else _count(known.columns, call.batch, call.keys)
        )
        if not known.named_keys:
            known.columns += call.batch * call.keys
        known.rows += call.batch * call.queries
        most = min(self._strongest or call.keys, call.keys)
        known.lossless &= known.whole or most == call.keys
        self.lossless &= known.lossless
        for tile in call.tiles():
            for place in range(tile.pattern.shape[0]):
                self._keep(known, tile, place, rows[tile.batch][place][tile.rows],
                           columns[tile.batch][place][: tile.keys], most)  # fmt: skip

    def _begin(
        self, call: AttentionCall, queries: NDArray | None, keys: NDArray | None
    ) -> _SitePatterns:
        named = [found is not None and bool((found >= 0).any()) for found in (queries, keys)]
        columns = len(self._tokens[call.key_tower]) if named[1] else 0
        kept = min(self._strongest or call.keys, call.keys)
        whole = all(named) and is_whole(columns, kept)
        return _SitePatterns(columns, named[0], named[1], whole, True, call.key_tower)

    def _keep(
        self,
        site: _SitePatterns,
        tile: Tile,
        place: int,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        most: int,
    ) -> None:
        import torch  # here, as who only reads does without it

        there = columns >= 0
        pattern = tile.pattern[place][:, torch.as_tensor(rows >= 0)]
        if not there.all():
            pattern = pattern[..., torch.as_tensor(there)]
        rows, columns = rows[rows >= 0], columns[there]
        if site.whole:
            weights = np.zeros((pattern.shape[0], len(rows), site.columns), np.float16)
            weights[..., columns] = _half(pattern)
        else:
            # By size without sign: heads that are mixed after the softmax may have negative ones.
            place_of = pattern.abs().topk(min(most, len(columns)), dim=-1).indices
            weights = _half(pattern.gather(-1, place_of))
            site.numbers.append(columns[place_of.cpu().numpy()])
        site.queries.append(rows)
        site.weights.append(weights)
        self.nbytes += weights.nbytes * (1 if site.whole else 2)
        if self.nbytes > self._room:
            raise TooLarge(f"They would take more than {self._room >> 20} MiB.")

    def save(self, path: Path) -> int:
        """Write what was heard; returns the size of the file in bytes."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {}
        about: dict[str, Any] = {"strongest": self._strongest, "sites": {}}
        for site in list(self._sites):
            found = self._sites.pop(site)
            arrays |= {f"{site}.{name}": array for name, array in _joined(found).items()}
            about["sites"][str(site)] = {
                "key_tower": found.key_tower,
                "columns": found.columns,
                "named_queries": found.named_queries,
                "named_keys": found.named_keys,
                "lossless": found.lossless,
                "row_sums": self._layout.site(site).row_sums,
            }
        data = save(arrays, {"about": json.dumps(about)})
        with written_atomically(path) as temporary:
            temporary.write_bytes(data)
        return len(data)


def _joined(site: _SitePatterns) -> dict[str, NDArray[Any]]:
    """Rows in the order of their numbers, heads first, so that one head lies in one piece."""
    queries = np.concatenate(site.queries)
    order = np.argsort(queries, kind="stable")
    arrays: dict[str, NDArray[Any]] = {"query": queries[order].astype(np.int32)}
    if site.whole:
        # In C's order: safetensors writes memory as it lies.
        whole = np.concatenate(site.weights, 1)[:, order]
        return arrays | {"pattern": np.ascontiguousarray(whole)}
    wide = np.uint16 if site.columns <= 1 << 16 else np.int32
    most = max(part.shape[-1] for part in site.weights)
    weights = np.concatenate([_padded(part, most) for part in site.weights], 1)
    numbers = np.concatenate([_padded(part, most).astype(wide) for part in site.numbers], 1)
    return arrays | {
        "weight": np.ascontiguousarray(weights[:, order]),
        "key": np.ascontiguousarray(numbers[:, order]),
    }


def _padded(part: NDArray[Any], most: int) -> NDArray[Any]:
    return np.pad(part, ((0, 0), (0, 0), (0, most - part.shape[-1])))


def _half(weights: Tensor) -> NDArray[np.float16]:
    return weights.half().cpu().numpy()


def _numbers(index: Tensor | None) -> NDArray[np.int64] | None:
    return None if index is None else index.cpu().numpy()


def _count(first: int, batch: int, length: int) -> NDArray[np.int64]:
    return first + np.arange(batch * length).reshape(batch, length)
