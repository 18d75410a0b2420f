"""Which keys the queries of a call may read, counted once for all layers that share a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from probes.tokens.map import ROLES

_ENTRIES = 1 << 22
_FEWEST_READERS = 0.5
"""Of the most-read key of the sequence: one confident reader of a last key makes no sink."""
STANDING = ("bos", "cls", "register")
"""Roles of keys that are sinks by what they are."""


@dataclass(frozen=True)
class Reach:
    """Counts over queries that are no padding.

    Attributes:
        used: bool ``[batch query]``: real queries that may read something.
        readable: float32 ``[batch query]``: how many keys a query may read.
        readers: float32 ``[batch key]``: how many used queries may read a key.
        uniform: float32 ``[batch key]``: the weight that a key gets if every used query weighs
            its keys alike, summed.
        judged: bool ``[batch key]``: enough readers to tell whether a key is a sink.
        absent: bool ``[batch key]``: padding, or no known position.
        standing: bool ``[batch key]``: sinks by what they are: BOS, CLS, registers, and the first
            key of a sequence unless it is an image patch.
    """

    used: Tensor
    readable: Tensor
    readers: Tensor
    uniform: Tensor
    judged: Tensor
    absent: Tensor
    standing: Tensor


def reach_of(plan: CallPlan) -> Reach:
    """The reach of a plan whose positions are known."""
    return plan.memo("exemplar reach", lambda: _reach(plan))


def allowed_blocks(plan: CallPlan) -> Iterator[tuple[slice, Tensor]]:
    """Bool ``[batch row key]``: which pairs may attend, some query rows at a time."""
    keys = plan.key_index.shape[1]
    queries = plan.used.shape[1]
    rows = max(1, _ENTRIES // max(plan.used.shape[0] * keys, 1))
    for start in range(0, queries, rows):
        part = slice(start, min(start + rows, queries))
        yield part, plan.may_read(part, keys)


def _reach(plan: CallPlan) -> Reach:
    device = plan.device
    readable = torch.zeros(plan.used.shape, device=device)
    readers = torch.zeros(plan.key_index.shape, device=device)
    uniform = torch.zeros_like(readers)
    for part, allowed in allowed_blocks(plan):
        count = allowed.sum(-1).float()
        readable[:, part] = count
        used = (plan.used[:, part] & (count > 0)).float()
        readers += torch.einsum("brk,br->bk", allowed.float(), used)
        uniform += torch.einsum("brk,br->bk", allowed.float(), used / count.clamp_min(1))
    role = plan.of_keys("role")
    absent = (role < 0) | (role == ROLES.index("pad"))
    names = torch.tensor([ROLES.index(name) for name in STANDING], device=device)
    first = (plan.key_rank == 0) & (role != ROLES.index("image"))
    standing = (torch.isin(role, names) | first) & ~absent
    return Reach(
        plan.used & (readable > 0), readable, readers, uniform, _judged(plan, readers), absent,
        standing,
    )  # fmt: skip


def _judged(plan: CallPlan, readers: Tensor) -> Tensor:
    block = plan.key_block % (plan.blocks + 1)  # keys of no block share the last place
    most = readers.new_zeros(plan.blocks + 1)
    most.scatter_reduce_(0, block.flatten(), readers.flatten(), "amax")
    if not bool((plan.key_block >= 0).any()):  # keys of another tower: each row by itself
        return (readers >= _FEWEST_READERS * readers.amax(-1, keepdim=True)) & (readers > 0)
    return (readers >= _FEWEST_READERS * most[block]) & (readers > 0)
