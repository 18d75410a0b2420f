"""Trace one query, key or value tensor back to the linear map that its heads came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from probes.lineage import Node
from probes.weights.column_match import (
    NotFound,
    cut_into_heads,
    match_columns,
    same_norms,
    same_products,
    shifted,
)
from probes.weights.linear_runs import LinearRun, moved_before
from probes.weights.weight_mode import Operand, Operands

_MOST_NAMES = 6


@dataclass(frozen=True)
class Trace:
    """Where the numbers of a query, key or value were found.

    Attributes:
        columns: long ``[head head_width]``: outputs of the map; fewer heads than queries have
            where keys or values are shared.
        scaling: constant that the outputs were multiplied with.
        heads: ``[head row head_width]`` as the map gave them.
        turned: the same as the attention read them, every way to read its axes that fits; empty
            where it read them unchanged.
        factor: length after the turn over length before.
        normed: path of a norm that came between, else empty.
        shift: ``[head head_width]``: a learned bias that was added after the map, before
            ``scaling``.
    """

    run: LinearRun
    columns: Tensor
    scaling: float
    heads: Tensor
    turned: tuple[Tensor, ...] = ()
    factor: float = 1.0
    normed: str = ""
    shift: Tensor | None = None


def trace_pair(
    given: Operands, heads: int, rows: int, norm_paths: set[str]
) -> tuple[Trace | NotFound, Trace | NotFound]:
    """Query and key of the first product of which both can be traced, else of the first.

    Args:
        heads: query heads of the call.
        rows: query vectors of the call, heads and batch multiplied in.
        norm_paths: modules that are norms.
    """
    unseen = NotFound("no product of query and key was seen before the softmax")
    first: tuple[Trace | NotFound, Trace | NotFound] = (unseen, unseen)
    for number, (query, key) in enumerate(given.pairs):
        width = query.tensor.numel() // rows
        both = (
            trace_part("query", query, heads, width, norm_paths),
            trace_part("key", key, heads, width, norm_paths),
        )
        if all(isinstance(one, Trace) for one in both):
            return both
        first = first if number else both
    return first


def trace_part(
    part: str, operand: Operand, heads: int, width: int, norm_paths: set[str]
) -> Trace | NotFound:
    """The map behind a ``query``, ``key`` or ``value``, or why there is none.

    Keys and values may have fewer heads; a rotation or norm may follow on queries and keys.
    """
    try:
        shared, turns = part != "query", part != "value"
        return _trace(operand, heads, width, norm_paths, shared=shared, turns=turns)
    except NotFound as reason:
        return reason


def turned_alike(query: Trace, key: Trace, heads: int) -> bool:
    """Whether query times key at the same place is what it was before both were turned."""
    before = (query.heads, expanded(key.heads, heads))
    factor = query.factor * key.factor
    return any(
        same_products((one, expanded(other, heads)), before, factor)
        for one in query.turned or (query.heads,)
        for other in key.turned or (key.heads,)
    )


def expanded(of_heads: Tensor, heads: int) -> Tensor:
    """Key or value heads repeated for their groups of query heads, as SDPA does it."""
    own = of_heads.shape[0]
    return of_heads if own == heads else of_heads.repeat_interleave(heads // own, dim=0)


def _trace(
    operand: Operand, heads: int, width: int, norm_paths: set[str], *, shared: bool, turns: bool
) -> Trace:
    counts = [heads // n for n in range(1, heads + 1) if heads % n == 0] if shared else [heads]
    if operand.node.kind == "weight":
        raise NotFound("it is learned, and made from no input")
    reason = ""
    crossed: list[Node] = []
    for moved, crossed in moved_before(operand.node):
        for cut in cut_into_heads(moved.tensor, counts, width):
            try:
                run, columns = match_columns(moved, cut)
            except NotFound as problem:
                reason = reason or str(problem)
                continue
            if run.normed and not turns:
                raise NotFound(f"a norm ({run.normed}) comes after its projection")
            found = Trace(run, columns, moved.factor, cut, normed=run.normed)
            return _through(found, operand, heads, crossed, norm_paths, turns)
    reason = reason or "no linear map was seen to make it"
    raise NotFound(f"{reason}{_passing(crossed, '; on the way')}")


def _through(
    found: Trace,
    operand: Operand,
    heads: int,
    crossed: list[Node],
    norm_paths: set[str],
    turns: bool,
) -> Trace:
    """The trace with what came between: nothing, a rotation or a norm."""
    if not crossed:
        return found
    own, _, width = found.heads.shape
    norm = next((n for n in crossed if n.kind == "norm" or n.path in norm_paths), None)
    wanted = {own: found.heads, heads: expanded(found.heads, heads)}
    cuts = list(cut_into_heads(operand.tensor, wanted, width))
    for cut in cuts:
        change = shifted(cut, wanted[cut.shape[0]])
        if change is not None and cut.shape[0] == own:
            factor, shift = change
            return replace(found, scaling=found.scaling * factor, shift=shift)
    if turns:
        ratios = [same_norms(cut, wanted[cut.shape[0]]) for cut in cuts]
        fitting = [(cut, r) for cut, r in zip(cuts, ratios, strict=True) if r is not None]
        if fitting:
            turned = tuple(cut for cut, _ in fitting)
            return replace(found, turned=turned, factor=fitting[0][1])
        if norm is not None:
            return replace(found, normed=norm.path or norm.name)
    if norm is not None:
        raise NotFound(f"a norm ({norm.path or norm.name}) comes after its projection")
    raise NotFound(_passing(crossed, "after its projection"))


def _passing(crossed: list[Node], when: str) -> str:
    changing = [node for node in crossed if node.kind != "join"] or crossed
    names = sorted({node.name for node in changing})
    return f"{when} it passes {', '.join(names[:_MOST_NAMES])}" if names else ""
