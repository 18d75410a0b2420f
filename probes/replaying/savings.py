"""Two more things that need not be computed again: rows that nobody reads, and untouched towers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.operations import tensors_in
from probes.replaying.call_tree import Call, CallTree
from probes.replaying.returned import differing, first_of, mapped
from probes.replaying.short_circuit import Action, Forward

if TYPE_CHECKING:
    from probes.replaying.proof import Knowledge

_MOST_READ = 0.75
"""Above this share of rows, picking them out costs more than it saves."""
_SAME_ROWS = 1e-6
"""Largest difference, of the largest value, that computing fewer rows may make."""


@dataclass(frozen=True)
class ReadRows:
    """The positions of the last block's output that are read after it, by final norm and head.

    What works on each position alone is computed there only; other rows are zero.

    Attributes:
        rows: long ``[read]``.
        length: number of positions.
    """

    rows: Tensor
    length: int

    def apply(self, forward: Forward, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What a module returns, computed at the read rows only."""
        output = forward(*mapped(args, self._picked), **mapped(named, self._picked))
        first = first_of(output)
        if first is None or first.ndim != 3 or first.shape[1] != self.rows.numel():
            return forward(*args, **named)
        full = first.new_zeros(first.shape[0], self.length, first.shape[2])
        full[:, self.rows] = first
        return full if isinstance(output, Tensor) else type(output)([full, *output[1:]])

    def _picked(self, tensor: Tensor) -> Tensor:
        fits = tensor.ndim == 3 and tensor.shape[1] == self.length
        return tensor[:, self.rows] if fits else tensor

    def actions(self, tree: CallTree) -> dict[Call, Action]:
        """For the last block's output projection and what comes after it in the block."""
        block = last_block(tree)
        if block is None:
            return {}
        inside = [call for call in tree.calls if call in block and call.plain]
        if not inside:
            return {}
        last = max(inside, key=lambda call: call.start)
        found = [last]
        for around in last.above():
            found += [c for c in around.children if c.start > last.end and _is_heavy(c)]
            if around is block:
                break
        return {call: Action(self.apply, inside=True, required=False) for call in found}


def find_read_rows(
    tree: CallTree,
    positions: Tensor | None,
    run_intact: Callable[[ReadRows], Any],
    output: Any,
    known: Knowledge,
) -> ReadRows | str:
    """The rows that suffice for the output, tried on the intact model; or why there are none.

    Args:
        positions: those whose logits the output holds; None for all, or where it holds none. Then
            the first one is tried, which image classifiers read alone (CLS).
        run_intact: runs the intact model, computing these rows only.
        output: of the intact model.
    """
    block = last_block(tree)
    if block is None or len(block.shape) != 3:
        return "No block returns a row for each position."
    if positions is None and known.reads_more_than_first:
        return "The output depends on other positions than the first."
    rows = torch.zeros(1, dtype=torch.long) if positions is None else positions
    if rows.numel() > _MOST_READ * block.shape[1]:
        return "Most positions are read."
    found = ReadRows(rows, block.shape[1])
    if not found.actions(tree):
        return "Nothing in the last block was seen to work on each position alone."
    try:
        problem = differing(run_intact(found), output, _SAME_ROWS)
    except Exception as error:  # any class of model may fail in its own way
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        return found
    known.reads_more_than_first |= positions is None
    return f"With fewer rows the intact model gives something else ({problem})."


def last_block(tree: CallTree) -> Call | None:
    """The block that returns last."""
    role = tree.outline.role
    blocks = [call for call in tree.calls if role[call.module] == "block"]
    return max(blocks, key=lambda call: call.end, default=None)


def untouched_towers(tree: CallTree, cut: Call, changed: Iterable[Call]) -> dict[Call, Action]:
    """Towers that run after the cut: if their inputs are the recorded ones, so is their output."""
    changed = list(changed)
    found: dict[Call, Action] = {}
    for call in tree.calls:
        later = call.given is not None and call.has_output and call.start > cut.start
        inside = any(other in found for other in call.above())
        if later and not inside and not any(end in call for end in changed):
            found[call] = Action(_unless_changed(call), inside=True, required=False)
    return found


def _unless_changed(call: Call) -> Any:
    def act(forward: Forward, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if _same(call.given, (args, named)):
            return mapped(call.returned(), lambda tensor: tensor)
        return forward(*args, **named)

    return act


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same as far as can be seen: tensors by value."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and one.device == other.device and bool((one == other).all())
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, int | float | str) and one == other


def _is_heavy(call: Call) -> bool:
    return any(weight.ndim > 1 for weight in tensors_in(list(call.module.parameters())))
