"""The rows of a batch anew, from some of their positions: closed up, padded, with their map."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.collate import has_own_positions
from probes.inputs import Batch, InputError
from probes.padding import pad_id
from probes.tokens.map import ROLES, TokenMap, TowerTokens

if TYPE_CHECKING:
    from probes.subject import Subject

_OF_IMAGES = re.compile(r"pixel|image|vision|visual|video|grid|aspect|spatial|crop|tile|patch")
"""Names of tensors that hold pixels or say how they lie."""


def packed(stays: Tensor, side: str) -> Tensor:
    """Long ``[row new_position]``: the old position of each new one, -1 for padding.

    Args:
        stays: bool ``[row position]``: which positions are kept.
        side: where rows are padded: ``left`` or ``right``.
    """
    rows = [row.nonzero()[:, 0] for row in stays]
    length = max(len(row) for row in rows)
    source = torch.full((len(rows), length), -1)
    for index, row in enumerate(rows):
        begin = length - len(row) if side == "left" else 0
        source[index, begin : begin + len(row)] = row
    return source


def padding_side(subject: Subject, padding: Tensor) -> str:
    """The side on which ``padding [row position]`` is, else that on which the subject pads."""
    if bool(padding[:, 0].any()):
        return "left"
    return "right" if bool(padding[:, -1].any()) or not subject.generates else "left"


def new_places(source: Tensor, length: int) -> Tensor:
    """Long ``[row position]``: where each of ``length`` old positions is now, -1 if nowhere."""
    places = torch.full((len(source), length), -1)
    row, new = (source >= 0).nonzero(as_tuple=True)
    places[row, source[row, new]] = new
    return places


def repacked_tensors(
    subject: Subject, batch: Batch, source: Tensor, padding: Tensor, *, images: bool
) -> dict[str, Any]:
    """The tensors of a batch whose row r holds positions of row ``r % batch.size``.

    Position ids are counted anew, but for rows that stay as they are, and left to models that
    count by themselves.

    Args:
        source: as `packed` gives it, or several of them below each other.
        padding: bool ``[batch position]`` of the old rows.
        images: keep what holds pixels.

    Raises:
        InputError: an attention mask that is not one number per position.
    """
    ids = batch.tensors["input_ids"]
    made: dict[str, Any] = {}
    for name, value in batch.tensors.items():
        if name == "position_ids":
            continue
        if _OF_IMAGES.search(name):
            if images:
                made[name] = value
            continue
        alike = isinstance(value, Tensor) and value.shape[:2] == ids.shape
        if name == "attention_mask" and not alike:
            raise InputError(
                "The attention mask must have a batch and a position axis to be made anew, got "
                f"{list(value.shape)}. Prepare the batch from text and images."
            )
        fill = pad_id(subject.tokenizer or subject.config) if name == "input_ids" else 0
        made[name] = _gathered(value, source, fill) if alike else value
    if "attention_mask" not in made and not bool((source >= 0).all()):
        made["attention_mask"] = (source >= 0).long().to(ids.device)
    positions = _positions(subject, batch, source, padding)
    return made if positions is None else {**made, "position_ids": positions.to(ids.device)}


def repacked_tokens(tokens: TowerTokens, source: Tensor, fill: int) -> TowerTokens:
    """The map of the new rows, padded with the id ``fill``; row r belongs to example r."""
    count, length = source.shape
    old = (torch.arange(count) % tokens.rows)[:, None]
    flat = torch.where(source >= 0, tokens.starts[:-1][old] + source, len(tokens)).flatten()

    def taken(column: Tensor, empty: float) -> Tensor:
        return torch.cat([column, torch.full_like(column[:1], empty)])[flat]

    text = (*tokens.text, "") if tokens.text else ()
    return replace(
        tokens,
        starts=torch.arange(count + 1) * length,
        example=torch.arange(count).repeat_interleave(length),
        role=taken(tokens.role, ROLES.index("pad")),
        ids=taken(tokens.ids, fill),
        image=taken(tokens.image, -1),
        tile=taken(tokens.tile, -1),
        row=taken(tokens.row, -1),
        column=taken(tokens.column, -1),
        box=taken(tokens.box, float("nan")),
        text=tuple(text[i] for i in flat.tolist()) if text else (),
    )


def repacked(
    subject: Subject, batch: Batch, tower: str, source: Tensor, padding: Tensor, *, images: bool
) -> Batch:
    """`repacked_tensors` and `repacked_tokens` as a batch; without images, of this tower alone.

    Examples are those of the old rows, one after the other.
    """
    fill = pad_id(subject.tokenizer or subject.config)
    kept = {name: t for name, t in batch.tokens.towers.items() if images or name == "decoder"}
    places = new_places(source, padding.shape[1])
    rows = [row % batch.size for row in range(len(source))]
    starts = batch.answer_starts or (-1,) * batch.size
    return Batch(
        repacked_tensors(subject, batch, source, padding, images=images),
        TokenMap({**kept, tower: repacked_tokens(batch.tokens[tower], source, fill)}),
        tuple(batch.examples[row] for row in rows),
        tuple(
            -1 if starts[row] < 0 else int(places[new, starts[row]]) for new, row in enumerate(rows)
        ),
        batch.image_sizes if images else (),
        batch.image_examples if images else (),
    )


def _positions(subject: Subject, batch: Batch, source: Tensor, padding: Tensor) -> Tensor | None:
    """Counted from where each row began; None where the model counts by itself."""
    if has_own_positions(subject.config):
        return None
    given = batch.tensors.get("position_ids")
    real = source >= 0
    if given is None and (bool(real[:, 0].all()) or "position_ids" not in subject.arguments.names):
        return None
    counted = (real.long().cumsum(-1) - 1).clamp_min(0)
    if not isinstance(given, Tensor) or given.shape != padding.shape:
        return counted
    old = torch.arange(len(source)) % len(given)
    began = given.cpu().masked_fill(padding, 2**40).amin(-1, keepdim=True)[old]
    counted = torch.where(real, counted + began, 0)
    same = source.shape[1] == given.shape[1]
    if not same:
        return counted
    untouched = ((source < 0) | (source == torch.arange(source.shape[1]))).all(1, keepdim=True)
    return torch.where(untouched, given.cpu()[old], counted)


def _gathered(value: Tensor, source: Tensor, fill: int) -> Tensor:
    """``value [batch position ...]`` at the new positions."""
    old = (torch.arange(len(source)) % len(value))[:, None]
    found = value[old.to(value.device), source.clamp_min(0).to(value.device)]
    padding = (source < 0).to(value.device).reshape(*source.shape, *[1] * (value.ndim - 2))
    return found.masked_fill(padding, fill)
