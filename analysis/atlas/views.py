"""What of an attention call is drawn as a pattern: patches of a tile, a sequence, a window."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from probes.tokens.map import ROLES, TowerTokens

_PAD = ROLES.index("pad")
_WRITTEN = ("bos", "system", "text", "generated")
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class View:
    """Queries and keys of one batch row of a call that make a pattern.

    Attributes:
        kind: ``patches``, the patches of one tile in reading order; ``tokens``, a whole sequence
            without padding; ``window``, a part of an image that attends to itself alone;
            ``cross``, queries and keys of different sequences.
        row: on the call's batch axis.
        example: index in the batch.
        queries, keys: long ``[...]`` on the CPU: places on the call's axes, as they are drawn.
        causal: no query may read a key that is drawn after it.
    """

    kind: str
    row: int
    example: int
    queries: Tensor
    keys: Tensor
    causal: bool


def find_views(plan: CallPlan, *, cross: bool = False) -> list[View] | str:
    """The views of a call, those of an example in order; or one sentence why there is none.

    Args:
        plan: of the call.
        cross: whether the layer was seen to read keys of another sequence.
    """
    tokens, other = plan.tokens, plan.key_tokens
    square = plan.query_index.shape[-1] == plan.key_index.shape[-1]
    if tokens is None:
        views = _unaligned(plan, cross=cross or not square)
    elif cross or other is None or other.tower != tokens.tower:
        views = _crossed(plan)
    elif _has_grid(tokens):
        views = _tiles(plan, tokens)
    else:
        views = _sequences(plan)
    found = [view for view in views if view.queries.numel() > 1 and view.keys.numel() > 1]
    if not found:
        return (
            "A pattern must have at least 2 queries and 2 keys, which no part of the call has, so "
            "no pattern is drawn there."
        )
    return sorted(found, key=lambda view: view.example)


def _has_grid(tokens: TowerTokens) -> bool:
    """Whether a tower sees patches with a place, and no words beside them."""
    placed = (tokens.row >= 0) & (tokens.column >= 0)
    return bool(placed.any()) and not bool(tokens.has_role(*_WRITTEN).any())


def _unaligned(plan: CallPlan, *, cross: bool) -> list[View]:
    # Positions are not known: padding is what no query may read.
    rows = plan.block_row.tolist()
    kind = "cross" if cross else "window" if len(rows) > plan.examples else "tokens"
    every = torch.arange(plan.query_index.shape[-1])
    mask = plan.mask.tensor
    alike = mask is None or mask.ndim < 4 or mask.shape[0] == 1
    first: View | None = None
    views = []
    for row, example in zip(rows, plan.block_example.tolist(), strict=True):
        if first is None or not alike:
            keys = _readable(plan, row, every)
            queries = every if cross else keys
            causal = not cross and _is_causal(plan, row, queries, keys)
            first = View(kind, row, example, queries, keys, causal)
        views.append(replace(first, row=row, example=example))
    return views


def _crossed(plan: CallPlan) -> list[View]:
    views = []
    real = torch.ones_like(plan.key_index, dtype=torch.bool).cpu()
    owner = None
    if plan.key_tokens is not None and bool((plan.key_index >= 0).any()):
        real = ((plan.key_index >= 0) & (plan.of_keys("role") != _PAD)).cpu()
        owner = plan.of_keys("example").cpu()
    for row, example, queries in _blocks(plan):
        keys = _readable(plan, row, queries)
        keys = keys[real[row, keys]]
        if owner is not None:
            keys = keys[owner[row, keys] == example]
        views.append(View("cross", row, example, queries, keys, False))
    return views


def _sequences(plan: CallPlan) -> list[View]:
    real = ((plan.key_index >= 0) & (plan.of_keys("role") != _PAD)).cpu()
    block = plan.key_block.cpu()
    views = []
    for number, (row, example, queries) in enumerate(_blocks(plan)):
        keys = (real[row] & (block[row] == number)).nonzero().flatten()
        views.append(_with_causal(plan, "tokens", row, example, queries, keys))
    return views


def _tiles(plan: CallPlan, tokens: TowerTokens) -> list[View]:
    names = ("example", "image", "tile")
    patches = torch.stack([tokens.example, tokens.image, tokens.tile], dim=-1)
    placed = (tokens.row >= 0) & (tokens.column >= 0) & (tokens.role != _PAD)
    sizes = _counted(patches[placed])
    groups = [
        _grouped(torch.stack([read(name).cpu() for name in (*names, "role", "row", "column")], -1))
        for read in (plan.of_queries, plan.of_keys)
    ]
    views = []
    for group, queries in groups[0].items():
        row, *of_tile = group
        keys = groups[1].get(group, queries[:0])
        whole = queries.numel() == sizes[tuple(of_tile)]
        kind = "patches" if whole else "window"
        views.append(_with_causal(plan, kind, row, of_tile[0], queries, keys))
    return views


def _counted(groups: Tensor) -> dict[tuple[int, ...], int]:
    kinds, counts = torch.unique(groups, dim=0, return_counts=True)
    return dict(zip(map(tuple, kinds.tolist()), counts.tolist(), strict=True))


def _grouped(table: Tensor) -> dict[tuple[int, ...], Tensor]:
    """By batch row, example, image and tile: places on the axis, in reading order of the grid.

    Args:
        table: long ``[batch position 6]``: example, image, tile, role, row, column.
    """
    *_, role, row, column = table.unbind(-1)
    places = ((role != _PAD) & (row >= 0) & (column >= 0)).nonzero()
    chosen = table[places[:, 0], places[:, 1]]
    width = int(chosen[:, 5].max()) + 1 if len(chosen) else 1
    order = torch.argsort(chosen[:, 4] * width + chosen[:, 5], stable=True)
    group = torch.cat([places[order, :1], chosen[order, :3]], dim=1)
    kinds, member = torch.unique(group, dim=0, return_inverse=True)
    apart = torch.argsort(member, stable=True)
    parts = places[order, 1][apart].split(torch.bincount(member, minlength=len(kinds)).tolist())
    return dict(zip(map(tuple, kinds.tolist()), parts, strict=True))


def _blocks(plan: CallPlan) -> list[tuple[int, int, Tensor]]:
    """Batch row, example and queries of each sequence of a call."""
    block, used = plan.query_block.cpu(), plan.used.cpu()
    rows = zip(plan.block_row.tolist(), plan.block_example.tolist(), strict=True)
    return [
        (row, example, (used[row] & (block[row] == number)).nonzero().flatten())
        for number, (row, example) in enumerate(rows)
    ]


def _readable(plan: CallPlan, row: int, queries: Tensor) -> Tensor:
    """Long: keys that some head allows some of the queries to read."""
    total = plan.key_index.shape[-1]
    seen = torch.zeros(total, dtype=torch.bool)
    if not queries.numel():
        return seen.nonzero().flatten()
    first, last = int(queries.min()), int(queries.max()) + 1
    for start in range(first, last, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, last))
        seen |= _allowed(plan, row, rows, total).any(0)
    return seen.nonzero().flatten()


def _with_causal(
    plan: CallPlan, kind: str, row: int, example: int, queries: Tensor, keys: Tensor
) -> View:
    return View(kind, row, example, queries, keys, _is_causal(plan, row, queries, keys))


def _is_causal(plan: CallPlan, row: int, queries: Tensor, keys: Tensor) -> bool:
    if queries.numel() < 2 or keys.numel() < 2 or queries.numel() != keys.numel():
        return False
    if plan.mask.causal and torch.equal(queries, keys) and bool((queries.diff() > 0).all()):
        return True
    place = torch.full((plan.query_index.shape[-1],), -1)
    place[queries] = torch.arange(queries.numel())
    after = torch.arange(keys.numel())
    last = int(queries.max()) + 1
    for start in range(int(queries.min()), last, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, last))
        drawn = place[rows]
        allowed = _allowed(plan, row, rows, plan.key_index.shape[-1])[drawn >= 0][:, keys]
        if bool((allowed & (after > drawn[drawn >= 0][:, None])).any()):
            return False
    return True


def _allowed(plan: CallPlan, row: int, rows: slice, keys: int) -> Tensor:
    """Bool ``[row key]`` on the CPU: what some head allows."""
    allowed = plan.mask.allowed(slice(row, row + 1), rows, keys)[0].any(0)
    return torch.broadcast_to(allowed, (rows.stop - rows.start, keys)).cpu()
