"""One intercepted attention, brought to ``[batch head query key]`` whatever layout it came in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probes.masks import AttentionMask


class NotAnAttentionPattern(Exception):
    """The product that was met is no query x key pattern times values; the reason is the text."""


@dataclass
class RawAttention:
    """Tensors of one call in the axis order of `AttentionCall`, and the way back.

    Attributes:
        restore: takes ``z [batch head query value_width]`` and returns what the model expects.
    """

    source: str
    value: Tensor
    z: Tensor
    mask: AttentionMask
    restore: Callable[[Tensor], Tensor]
    query: Tensor | None = None
    key: Tensor | None = None
    scale: float = 1.0
    whole: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.z.shape[1]


def from_sdpa(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    heads: int | None = None,
    examples: int | None = None,
) -> RawAttention:
    """A call of ``scaled_dot_product_attention`` and its output.

    Args:
        heads: head count of the site where known: it unfolds ``[batch * head, query, width]``,
            finds the heads among more than two leading axes (windows), and a decoded token of a
            model with grouped queries may arrive as ``[batch kv_head group width]``: unpacked.
        examples: number of rows, to unfold where ``heads`` is not known.
    """
    fold = _folding(query, examples, heads)
    mask = None if attn_mask is None else fold.mask(attn_mask)
    query, key, value, z = (fold.tensor(t) for t in (query, key, value, output))
    restore = fold.restore(output.shape)
    if heads is not None and query.shape[1] != heads and query.shape[1] * query.shape[2] == heads:
        packed = z.shape
        query, z = (t.reshape(t.shape[0], heads, 1, t.shape[-1]) for t in (query, z))
        inner = restore
        restore = lambda new: inner(new.reshape(packed))  # noqa: E731
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], heads, 1, mask.shape[-1])
    return RawAttention(
        source="sdpa",
        value=value,
        z=z,
        mask=AttentionMask(query.shape[2], key.shape[2], is_causal, mask),
        restore=restore,
        query=query,
        key=key,
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
    )


def from_product(
    name: str,
    args: tuple[Any, ...],
    output: Tensor,
    pattern: Tensor,
    examples: int | None,
    heads: int | None = None,
) -> RawAttention:
    """A product of a pattern and values, written out by the model.

    Args:
        heads, examples: as in `from_sdpa`.

    Raises:
        NotAnAttentionPattern: the axes cannot be read as query x key times key x width.
    """
    if name == "einsum":
        return _from_einsum(args, output, pattern, examples, heads)
    operands = [arg for arg in args if isinstance(arg, Tensor)][:2]
    if name == "__rmatmul__":
        operands.reverse()
    if len(operands) != 2:
        raise NotAnAttentionPattern("the product does not have two operands")
    left, right = operands
    if left is pattern:
        whole, value, z = left, right, output
        transposed = False
    else:
        whole, value, z = right.mT, left.mT, output.mT
        transposed = True
    if value.ndim != whole.ndim:
        raise NotAnAttentionPattern("pattern and values have different numbers of axes")
    fold = _folding(whole, examples, heads)
    inner = fold.restore(z.shape)
    return _softmax_call(
        fold.tensor(whole),
        fold.tensor(value),
        fold.tensor(z),
        (lambda new: inner(new).mT) if transposed else inner,
    )


def _from_einsum(
    args: tuple[Any, ...], output: Tensor, pattern: Tensor, examples: int | None, heads: int | None
) -> RawAttention:
    equation = args[0]
    operands = list(args[1:])
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or "." in equation or len(operands) != 2:
        raise NotAnAttentionPattern("an einsum of this form is not understood")
    terms, result = equation.replace(" ", "").split("->")
    subscripts = terms.split(",")
    where = 0 if operands[0] is pattern else 1
    a, v = subscripts[where], subscripts[1 - where]
    value = operands[1 - where]
    keys = [c for c in a if c in v and c not in result]
    queries = [c for c in a if c in result and c not in v]
    shared = [c for c in a if c in v and c in result]
    width = [c for c in v if c in result and c not in a]
    if len(keys) != 1 or len(queries) != 1 or len(width) != 1 or not shared:
        raise NotAnAttentionPattern(f"the einsum {equation!r} has no single query and key axis")

    def arrange(tensor: Tensor, have: str, want: list[str]) -> Tensor:
        return tensor.permute([have.index(c) for c in want])

    back = [*shared, queries[0], width[0]]
    order = [back.index(c) for c in result]
    whole = arrange(pattern, a, [*shared, queries[0], keys[0]])
    z = arrange(output, result, back)
    fold = _folding(whole, examples, heads)
    inner = fold.restore(z.shape)
    return _softmax_call(
        fold.tensor(whole),
        fold.tensor(arrange(value, v, [*shared, keys[0], width[0]])),
        fold.tensor(z),
        lambda new: inner(new).permute(order).to(output.dtype),
    )


def _softmax_call(
    whole: Tensor, value: Tensor, z: Tensor, restore: Callable[[Tensor], Tensor]
) -> RawAttention:
    if value.shape[-2] != whole.shape[-1] or z.shape[-2] != whole.shape[-2]:
        raise NotAnAttentionPattern("the pattern's last axis is not the axis that is summed over")
    mask = AttentionMask(whole.shape[-2], whole.shape[-1])
    return RawAttention("softmax", value, z, mask, restore, whole=whole)


@dataclass(frozen=True)
class _Folding:
    """How leading axes become ``[batch head]``: as they are, added, split or merged.

    Attributes:
        lead: sizes of the leading axes, empty where they are batch and head; one number, the
            batch, where both are folded into one axis.
        head_axis: where the heads are among three or more, as in ``[batch head window ...]``.
    """

    lead: tuple[int, ...]
    head_axis: int = -1

    def tensor(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 4 and len(self.lead) == 0:
            return tensor
        tensor = self._heads_last(tensor)
        batch = self._batch(tensor)
        return tensor.reshape(*batch, *tensor.shape[-2:])

    def _batch(self, tensor: Tensor) -> tuple[int, int]:
        lead = tensor.shape[:-2]
        if len(lead) == 0:
            return 1, 1
        if len(lead) == 1:
            return self.lead[0], lead[0] // self.lead[0]
        if len(lead) == 2:
            return lead[0], lead[1]
        return math.prod(lead[:-1]), lead[-1]

    def _heads_last(self, tensor: Tensor) -> Tensor:
        if self.head_axis < 0 or tensor.ndim < 5:
            return tensor
        return tensor.movedim(self.head_axis, -3)

    def mask(self, mask: Tensor) -> Tensor:
        if len(self.lead) == 1 and mask.ndim == 3 and mask.shape[0] > 1:
            return mask.reshape(self.lead[0], -1, *mask.shape[-2:])
        if mask.ndim > 4:
            mask = self._heads_last(mask)
            lead = mask.shape[:-2]
            wanted = self.lead if len(self.lead) == len(lead) else lead
            mask = mask.expand(*wanted[:-1], lead[-1], *mask.shape[-2:])
            return mask.reshape(-1, lead[-1], *mask.shape[-2:])
        return mask

    def restore(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        if self.head_axis < 0:
            return lambda new: new.reshape(shape)
        moved = list(shape)
        moved.insert(len(shape) - 3, moved.pop(self.head_axis))
        return lambda new: new.reshape(moved).movedim(-3, self.head_axis)


def _folding(query: Tensor, examples: int | None, heads: int | None) -> _Folding:
    lead = tuple(query.shape[:-2])
    if len(lead) == 1:
        if heads and lead[0] % heads == 0:
            return _Folding((lead[0] // heads,))
        known = examples if examples and lead[0] % examples == 0 else 1
        return _Folding((known,))
    if len(lead) < 3:
        return _Folding(())
    if heads and lead[-1] != heads and heads in lead[1:-1]:
        axis = lead.index(heads, 1)
        return _Folding((*lead[:axis], *lead[axis + 1 :], heads), axis)
    return _Folding(lead)
