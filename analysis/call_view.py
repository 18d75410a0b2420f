"""One attention call as measures see it: ask for quantities first, read them after the last tile.

A quantity that several measures ask for is computed once per tile. Those that are linear in a row
of the pattern are columns of one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.tile_view import TileView, Workspace
from probes.attention_call import Tile
from probes.heads import Site

_FEATURE_MULTIPLE = 4
"""Products with 3 columns take longer than with 4 (measured, MKL)."""


@dataclass
class Rows:
    """A number per query: ``values`` is float32 ``[batch head query]`` after the last tile."""

    values: Tensor


@dataclass
class Columns:
    """A number per key: ``values`` is float64 ``[batch head key]`` after the last tile."""

    values: Tensor


class CallView:
    """One call, its plan, and the quantities that measures asked it for.

    Attributes:
        site, step, heads, batch, queries, keys: of the call.
        z: ``[batch head query width]`` or ``None`` (uniform pattern).
        output_gram: float32 ``[head width width]``: W_O W_O^T of each head, or ``None``.
        plan: examples, blocks and positions.
        shared: for measures of one family to share what they collect.
        read_counts: float64 ``[batch query]``: number of keys that a query may read.
        reader_counts: float64 ``[batch key]``: number of counted queries that may read a key.
    """

    def __init__(
        self,
        site: Site,
        plan: CallPlan,
        heads: int,
        queries: int,
        keys: int,
        *,
        z: Tensor | None = None,
        output_gram: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.site, self.plan, self.heads = site, plan, heads
        self.batch, self.queries, self.keys = plan.used.shape[0], queries, keys
        self.step = plan.step
        self.z, self.output_gram = z, output_gram
        self.shared: dict[str, Any] = {}
        self._workspace = workspace or Workspace()
        self._rows: dict[str, tuple[Callable[[TileView], Tensor], Rows]] = {}
        self._products: dict[str, tuple[Tensor, Rows]] = {}
        self._pairs: dict[str, tuple[Callable[[TileView], Tensor], Rows]] = {}
        self._columns: dict[str, tuple[Callable[[TileView], Tensor | None], Columns]] = {}
        self._column_sums: dict[str, tuple[Callable[[TileView], Tensor], Columns]] = {}
        self._each: list[Callable[[TileView], None]] = []

    @property
    def uniform(self) -> CallView:
        """The same call with equal weights on all allowed keys; one head."""
        return self.plan.uniform or self

    @property
    def read_counts(self) -> Tensor:
        return self.plan.memo("read_counts", lambda: torch.zeros_like(self.plan.used).double())

    @property
    def reader_counts(self) -> Tensor:
        shape = (self.batch, self.keys)
        return self.plan.memo(
            "reader_counts",
            lambda: torch.zeros(shape, dtype=torch.float64, device=self.plan.device),
        )

    def rows(self, name: str, read: Callable[[TileView], Tensor]) -> Rows:
        """A number per query: ``read(tile)`` gives ``[batch head row]``."""
        if name not in self._rows:
            self._rows[name] = read, self._new_rows()
        return self._rows[name][1]

    def key_product(self, name: str, weights: Tensor) -> Rows:
        """``sum_k pattern[q, k] weights[k]``; weights are float ``[batch or 1, key]``."""
        if name not in self._products:
            self._products[name] = weights, self._new_rows()
        return self._products[name][1]

    def pair_product(self, name: str, weights: Callable[[TileView], Tensor]) -> Rows:
        """``sum_k pattern[q, k] weights[q, k]``; weights(tile) is ``[batch or 1, row, key]``."""
        if name not in self._pairs:
            self._pairs[name] = weights, self._new_rows()
        return self._pairs[name][1]

    def column_product(self, name: str, weights: Callable[[TileView], Tensor | None]) -> Columns:
        """``sum_q weights[q] pattern[q, k]``; weights(tile) is ``[batch head row]``, None for 1."""
        if name not in self._columns:
            self._columns[name] = weights, self._new_columns()
        return self._columns[name][1]

    def columns(self, name: str, read: Callable[[TileView], Tensor]) -> Columns:
        """A number per key, summed over tiles: ``read(tile)`` gives ``[batch head key]``."""
        if name not in self._column_sums:
            self._column_sums[name] = read, self._new_columns()
        return self._column_sums[name][1]

    def each(self, read: Callable[[TileView], None]) -> None:
        """Call ``read`` with every tile: for what none of the above gives."""
        self._each.append(read)

    def stream(self, tiles: Iterable[Tile]) -> None:
        """Read the tiles once and fill everything that was asked for."""
        features = self._feature_matrix()
        for tile in tiles:
            used = None if self.plan.all_used else self.plan.used[tile.batch, tile.rows]
            view = TileView(tile, used, self._workspace)
            for read, rows in self._rows.values():
                rows.values[view.batch, :, view.rows] = read(view)
            if features is not None:
                self._multiply_keys(view, features)
            if self._pairs:
                self._multiply_pairs(view)
            for read, columns in self._column_sums.values():
                columns.values[view.batch, :, : view.keys] += read(view)
            if self._columns:
                self._multiply_columns(view)
            for read in self._each:
                read(view)

    def release(self) -> None:
        """Let go of everything: readers refer to the view, and would keep it until a collection."""
        for asked in (self._rows, self._products, self._pairs, self._columns, self._column_sums):
            asked.clear()
        self._each.clear()
        self.shared.clear()
        self.z = self.output_matrix = None

    @property
    def wants_tiles(self) -> bool:
        """Whether anything was asked for that needs the pattern."""
        asked = (self._rows, self._products, self._pairs, self._columns, self._column_sums)
        return any(asked) or bool(self._each)

    def mean_over_queries(self, rows: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Numerator ``[example head]`` and denominator ``[example 1]`` of a mean over queries."""
        return self.plan.sum_queries(rows, where), self.plan.count_queries(where)

    def _new_rows(self) -> Rows:
        return Rows(torch.zeros(self.batch, self.heads, self.queries, device=self.plan.device))

    def _new_columns(self) -> Columns:
        shape = (self.batch, self.heads, self.keys)
        return Columns(torch.zeros(shape, dtype=torch.float64, device=self.plan.device))

    def _feature_matrix(self) -> Tensor | None:
        # [batch or 1, feature, key]: with keys last, the product runs along contiguous memory.
        if not self._products:
            return None

        def stack() -> Tensor:
            weights = [w.float() for w, _ in self._products.values()]
            batch = max(w.shape[0] for w in weights)
            spare = -len(weights) % _FEATURE_MULTIPLE
            weights += [torch.zeros_like(weights[0])] * spare
            return torch.stack([w.expand(batch, -1) for w in weights], dim=1).contiguous()

        return self.plan.memo(("features", *self._products), stack)

    def _multiply_keys(self, view: TileView, features: Tensor) -> None:
        batch, heads, rows, keys = view.pattern.shape
        chosen = features[..., :keys] if features.shape[0] == 1 else features[view.batch, :, :keys]
        if chosen.shape[0] == 1:
            flat = view.pattern.reshape(batch * heads * rows, keys)
            product = flat @ chosen[0].T
        else:
            product = view.pattern.reshape(batch, heads * rows, keys) @ chosen.transpose(1, 2)
        product = product.view(batch, heads, rows, -1)
        for index, (_, target) in enumerate(self._products.values()):
            target.values[view.batch, :, view.rows] = product[..., index]

    def _multiply_pairs(self, view: TileView) -> None:
        weights = [read(view) for read, _ in self._pairs.values()]
        targets = [rows.values[view.batch] for _, rows in self._pairs.values()]
        if not view.is_coarse:
            for given, target in zip(weights, targets, strict=True):
                target[:, :, view.rows] = view.weighted(given[:, None]).sum(-1)
            return
        for place, pattern in enumerate(view.pattern):
            # [row pair key] @ [row key head]: every query has weights of its own.
            matrix = torch.stack([given[place % given.shape[0]] for given in weights], dim=1)
            product = torch.bmm(matrix, pattern.permute(1, 2, 0))
            for index, target in enumerate(targets):
                target[place, :, view.rows] = product[:, index].T

    def _multiply_columns(self, view: TileView) -> None:
        batch, heads, rows, _ = view.pattern.shape
        weights = []
        for read, _ in self._columns.values():
            given = read(view)
            weights.append(view.pattern.new_ones(batch, heads, rows) if given is None else given)
        product = torch.stack(weights, dim=2) @ view.pattern
        for index, (_, target) in enumerate(self._columns.values()):
            target.values[view.batch, :, : view.keys] += product[:, :, index]
