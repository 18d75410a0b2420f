"""Which example, block and position each query and key of an attention call belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.masks import AttentionMask
from probes.tokens.map import ROLES, TokenMap, TowerTokens

if TYPE_CHECKING:
    from analysis.call_view import CallView
    from probes.inputs import Batch

_PAD = ROLES.index("pad")
T = TypeVar("T")


@dataclass
class CallPlan:
    """The layout of a call, shared by all layers that look alike within a batch.

    A *block* is one sequence within one row of the call's batch axis: a prompt, an image, one of
    several images packed into one row. Whole-pattern measures are taken per block.

    Attributes:
        examples: number of examples in the batch.
        tokens, key_tokens: ``None`` where the alignment is not known.
        query_index, key_index: long ``[batch query]``, ``[batch key]``: flat position in the
            token map, -1 where there is none.
        used: bool ``[batch query]``: queries that count (no padding, something to read).
        query_block, key_block: long, the same shapes: block of each position, -1 for none.
        block_row, block_example: long ``[block]``: its batch row and its example.
        single: each batch row is one block, and blocks are numbered like rows.
        batch: what is run, ``None`` where nobody said: for answers, questions, boxes.
        mask: of the call; a pattern that the model wrote out counts as allowed where not 0.
        all_used: every query counts (known once the uniform call has been streamed).
        uniform: the call on which every allowed key gets the same weight, already streamed.
        nulls, null_profiles: what pattern measures gave on it, by measure (and variant).
    """

    examples: int
    tokens: TowerTokens | None
    key_tokens: TowerTokens | None
    query_index: Tensor
    key_index: Tensor
    used: Tensor
    query_block: Tensor
    key_block: Tensor
    block_row: Tensor
    block_example: Tensor
    single: bool
    step: int
    mask: AttentionMask
    batch: Batch | None = None
    all_used: bool = False
    uniform: CallView | None = None
    nulls: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    null_profiles: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _memory: dict[Any, Any] = field(default_factory=dict)

    def memo(self, name: Any, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all layers that share this plan."""
        if name not in self._memory:
            self._memory[name] = make()
        return self._memory[name]

    @property
    def blocks(self) -> int:
        return self.block_row.numel()

    @property
    def device(self) -> torch.device:
        return self.used.device

    def sum_queries(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """Float64 ``[example head]``: the sum of ``[batch head query]`` over counted queries.

        Args:
            where: bool ``[batch query]``, narrows the queries further.
        """
        return self.sum_blocks(self.sum_by_block(values, where))

    def sum_by_block(self, values: Tensor, where: Tensor | None = None) -> Tensor:
        """Float64 ``[block head]``: the same for each block."""
        chosen = self.used if where is None else self.used & where
        kept = values.double().masked_fill(~chosen[:, None], 0.0)
        if self.single:
            return kept.sum(-1)
        batch, heads, queries = kept.shape
        rows = kept.permute(0, 2, 1).reshape(batch * queries, heads)
        per_block = rows.new_zeros(self.blocks + 1, heads)
        per_block.index_add_(0, self.query_block.flatten() % (self.blocks + 1), rows)
        return per_block[:-1]

    def count_queries(self, where: Tensor | None = None) -> Tensor:
        """Float64 ``[example 1]``: how many queries `sum_queries` adds up."""
        return self.sum_queries(torch.ones_like(self.used, dtype=torch.float64)[:, None], where)

    def sum_blocks(self, values: Tensor) -> Tensor:
        """Float64 ``[example head]``: the sum of ``[block head]`` over the blocks of each."""
        total = values.new_zeros(self.examples, values.shape[-1], dtype=torch.float64)
        return total.index_add_(0, self.block_example, values.double())

    def count_blocks(self) -> Tensor:
        """Float64 ``[example 1]``: number of blocks of each example."""
        ones = torch.ones(self.blocks, 1, dtype=torch.float64, device=self.device)
        return self.sum_blocks(ones)

    def columns_by_block(self, columns: Tensor) -> Tensor:
        """``[block head key]`` from ``[batch head key]``; keys of other blocks are 0."""
        if self.single:
            return columns
        blocks = torch.arange(self.blocks, device=self.device)
        own = self.key_block[self.block_row] == blocks[:, None]
        return columns[self.block_row].masked_fill(~own[:, None], 0.0)

    @property
    def queries_by_block(self) -> Tensor:
        """Float64 ``[block]``: number of counted queries."""

        def count() -> Tensor:
            total = torch.zeros(self.blocks + 1, dtype=torch.float64, device=self.device)
            total.index_add_(
                0, self.query_block.flatten() % (self.blocks + 1), self.used.flatten().double()
            )
            return total[:-1]

        return self.memo("queries_by_block", count)

    def may_read(self, rows: slice, keys: int) -> Tensor:
        """Bool ``[batch row key]``: pairs that some head allows; keys from 0 to ``keys``."""
        allowed = self.mask.allowed(slice(None), rows, keys).any(1).to(self.device)
        return torch.broadcast_to(allowed, (self.used.shape[0], *allowed.shape[1:]))

    def of_queries(self, column: str) -> Tensor:
        """Long ``[batch query]``: a column of the token map, -1 where the position is unknown."""
        return self.memo(("q", column), lambda: _look_up(self.tokens, self.query_index, column))

    def of_keys(self, column: str) -> Tensor:
        """Long ``[batch key]``: the same for keys."""
        return self.memo(("k", column), lambda: _look_up(self.key_tokens, self.key_index, column))

    def readable(self, batch: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Bool ``[member query key]``: the same for chosen places on the three axes."""
        first, last = int(queries.min()), int(queries.max()) + 1
        allowed = self.may_read(slice(first, last), int(keys.max()) + 1)
        return allowed[batch][:, queries - first][..., keys]

    @property
    def key_rank(self) -> Tensor:
        """Long ``[batch key]``: place within its sequence, padding not counted; -1 for padding."""
        return self.of_keys("rank")


def make_plan(
    call: AttentionCall, mask: AttentionMask, tokens: TokenMap | None, examples: int
) -> CallPlan | str:
    """The plan of a call, or one sentence that says why its rows cannot be told apart."""
    device = call.device
    own = None if tokens is None else tokens.towers.get(call.site.tower)
    other = None if tokens is None else tokens.towers.get(call.key_tower or call.site.tower)
    if own is None or call.query_index is None or not bool((call.query_index >= 0).any()):
        return _unaligned(call, mask, examples)
    query_index = call.query_index.to(device)
    if call.key_index is None or other is None:
        other, key_index = None, torch.full((call.batch, call.keys), -1, device=device)
    else:
        key_index = call.key_index.to(device)
    role = _look_up(own, query_index, "role")
    used = (query_index >= 0) & (role != _PAD) & (_look_up(own, query_index, "example") >= 0)
    sequence = _look_up(own, query_index, "sequence")
    rows = torch.arange(call.batch, device=device)[:, None]
    code = (rows * (own.rows + 1) + sequence).masked_fill(~used, -1)
    codes, block = torch.unique(code, return_inverse=True)
    empty = int(bool((~used).any()))
    query_block = block - empty
    codes = codes[empty:]
    block_row = codes // (own.rows + 1)
    sequences = codes % (own.rows + 1)
    starts = own.starts.to(device)[sequences]
    block_example = own.example.to(device)[starts]
    single = codes.numel() == call.batch and bool((block_row == rows[:, 0]).all())
    if single:
        key_block = rows.expand(-1, call.keys)
    elif other is not None and other.tower == own.tower:
        code = rows * (own.rows + 1) + _look_up(other, key_index, "sequence")
        place = torch.searchsorted(codes, code).clamp_max(codes.numel() - 1)
        key_block = place.masked_fill(codes[place] != code, -1)
    else:
        key_block = torch.full((call.batch, call.keys), -1, device=device)
    return CallPlan(
        examples, own, other, query_index, key_index, used, query_block, key_block,
        block_row, block_example, single, call.step, mask,
        None if call.moment is None else call.moment.batch,
    )  # fmt: skip


def _unaligned(call: AttentionCall, mask: AttentionMask, examples: int) -> CallPlan | str:
    if examples == 0 or call.batch % examples:
        return (
            f"The {call.batch} rows of an attention call of {call.site} must be a multiple of the "
            f"{examples} examples to tell them apart, so the layer is not measured."
        )
    device = call.device
    rows = torch.arange(call.batch, device=device)
    unknown_q = torch.full((call.batch, call.queries), -1, device=device)
    unknown_k = torch.full((call.batch, call.keys), -1, device=device)
    return CallPlan(
        examples, None, None, unknown_q, unknown_k, unknown_q < 0,
        rows[:, None].expand(-1, call.queries), rows[:, None].expand(-1, call.keys),
        rows, rows // (call.batch // examples), True, call.step, mask,
    )  # fmt: skip


def _look_up(tokens: TowerTokens | None, index: Tensor, column: str) -> Tensor:
    assert tokens is not None, "the positions of this call are not known"
    if column == "sequence":
        values = torch.arange(tokens.rows).repeat_interleave(tokens.lengths)
    elif column == "rank":
        real = (tokens.role != _PAD).long()
        before = real.cumsum(0) - real
        values = before - before[tokens.starts[:-1]].repeat_interleave(tokens.lengths)
        values = values.masked_fill(real == 0, -1)
    else:
        values = getattr(tokens, column)
    values = torch.cat([values, values.new_full((1,), -1)]).to(index.device)
    return values[index]
