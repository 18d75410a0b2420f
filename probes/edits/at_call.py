"""Carry out edits where the model computes: at an attention call, or on z before its projection."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from probes.attention_call import AttentionCall, Tile
from probes.edits.edit import Edit, EditPlace, EditReport
from probes.heads import Site
from probes.moment import Moment

BoundEdit = tuple[Edit, dict[Site, list[int]], EditReport]
"""An edit, the heads of each site that it chose, and the report it writes to."""


def edit_call(call: AttentionCall, edits: Iterable[BoundEdit], first_head: int) -> bool:
    """Apply edits to a call; its tiles and its z are the edited ones afterwards.

    Args:
        first_head: index within the site of the call's first head (one call per head group).

    Returns:
        Whether any edit chose heads of this call.
    """
    z_edits, affected = [], set()
    for edit, chosen, report in edits:
        heads = [h - first_head for h in chosen.get(call.site, ())]
        heads = [h for h in heads if 0 <= h < call.heads]
        if not heads:
            continue
        if edit.stage == "z":
            z_edits.append((edit, heads, report))
            continue
        target = call.score_edits if edit.stage == "scores" else call.pattern_edits
        target.append(_on_heads(edit, heads, report, first_head))
        affected.update(heads)
    if affected:
        call.changed = torch.zeros(call.z.shape[:3], dtype=torch.bool, device=call.device)
        new = call.weighted_values(counting=True).to(call.z.dtype)
        # Rows that no edit changed keep the model's own z, bit for bit. Where gradients flow, they
        # flow through the pattern of all rows.
        which = call.changed if not new.requires_grad else _of_heads(call, affected)
        call.z = torch.where(which[..., None], new, call.z)
    for edit, heads, report in z_edits:
        named = [first_head + head for head in heads]
        place = EditPlace(call.site, named, call.step, call, moment=call.moment)
        z = call.z.transpose(1, 2)
        call.z = edit_z_of(edit, z, heads, place, report).transpose(1, 2)
    return bool(affected or z_edits)


def edit_hooked_z(
    site: Site, z: Tensor, edits: Iterable[BoundEdit], moment: Moment, index: Tensor | None
) -> Tensor:
    """``z [batch query head head_width]`` on its way into the output projection, edited.

    Args:
        index: long ``[batch query]``: flat position of each query in the token map, if known.
    """
    for edit, chosen, report in edits:
        if site in chosen:
            place = EditPlace(site, chosen[site], moment.step, moment=moment, index=index)
            z = edit_z_of(edit, z, chosen[site], place, report)
    return z


def edit_z_of(
    edit: Edit, z: Tensor, heads: list[int], place: EditPlace, report: EditReport
) -> Tensor:
    """``z [batch query head head_width]`` with the chosen heads edited."""
    every = heads == list(range(z.shape[2]))  # then nothing need be taken out and put back
    old = z if every else z[:, :, heads]
    new = edit.apply(old, place).to(z.dtype)
    if new.shape != old.shape:
        raise ValueError(
            f"Edit {edit.label} must return z of shape {tuple(old.shape)} (batch, query, head, "
            f"head_width), got {tuple(new.shape)}."
        )
    report.fired += 1
    report.touched += int((new != old).any(-1).sum())
    if every:
        return new
    result = z.clone()
    result[:, :, heads] = new
    return result


def _of_heads(call: AttentionCall, heads: Iterable[int]) -> Tensor:
    """Bool ``[1 head 1]``."""
    found = torch.zeros(1, call.heads, 1, dtype=torch.bool, device=call.device)
    found[:, list(heads)] = True
    return found


def _on_heads(
    edit: Edit, heads: list[int], report: EditReport, first_head: int = 0
) -> Callable[[Tile, Tensor], Tensor]:
    named = [first_head + head for head in heads]

    def apply(tile: Tile, values: Tensor) -> Tensor:
        call = tile.call
        place = EditPlace(call.site, named, call.step, call, tile, call.moment)
        every = heads == list(range(values.shape[1]))
        old = values if every else values[:, heads]
        new = edit.apply(old, place)
        if new.shape != old.shape:
            raise ValueError(
                f"Edit {edit.label} must return {edit.stage} of shape {tuple(old.shape)} (batch, "
                f"head, query, key), got {tuple(new.shape)}."
            )
        if call.counting:
            differs = (new != old).any(-1)  # [batch head row]
            count = int(differs.sum())
            report.fired += 1
            report.touched += count
            if count:
                call.note_changed(tile, None if every else heads, differs)
        if every:
            return new
        result = values.clone()
        result[:, heads] = new
        return result

    return apply


def edited_z(call: AttentionCall, edit: Edit) -> Tensor:
    """``[batch query head value_width]``: what all heads of a call would give under an edit.

    The call itself stays as it is, and so does what the model goes on with.
    """
    report = EditReport(edit.label, ())
    heads = list(range(call.heads))
    target = call.score_edits if edit.stage == "scores" else call.pattern_edits
    if edit.stage == "z":
        z = call.z.transpose(1, 2)
        place = EditPlace(call.site, heads, call.step, call, moment=call.moment)
        return edit_z_of(edit, z, heads, place, report)
    target.append(_on_heads(edit, heads, report))
    try:
        return call.weighted_values().to(call.z.dtype).transpose(1, 2)
    finally:
        target.pop()
