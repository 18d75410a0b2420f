"""New head outputs for one layer, put in where the model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.edits.function import FunctionEdit, edit_z
from probes.heads import Head, Site
from probes.replaying.short_circuit import Action, Forward

if TYPE_CHECKING:
    from probes.subject import Subject


class ReplayError(RuntimeError):
    """A run that cannot be made exactly; the message is one or two plain sentences."""


@dataclass(frozen=True)
class Change:
    """Heads of one layer and what they give out instead.

    Attributes:
        heads: ascending.
        values: ``[batch query len(heads) value_width]`` in the dtype of z.
    """

    heads: tuple[int, ...]
    values: Tensor

    def of(self, z: Tensor) -> Tensor:
        """A copy of ``z [batch query head value_width]`` with the heads changed."""
        z = z.clone(memory_format=torch.contiguous_format)
        for index, head in enumerate(self.heads):
            z[:, :, head] = self.values[:, :, index]
        return z


def checked_change(site: Site, z: Tensor, heads: Sequence[int], values: Tensor) -> Change:
    """A change that fits the layer.

    Raises:
        ReplayError: a head that is not there, or values of a wrong shape.
    """
    chosen = [int(head) for head in heads]
    there = set(chosen) <= set(range(z.shape[2]))
    if not chosen or not there or len(set(chosen)) < len(chosen):
        raise ReplayError(
            f"Heads of {site} must be different numbers from 0 to {z.shape[2] - 1}, got {chosen}."
        )
    shape = (*z.shape[:2], len(chosen), z.shape[3])
    try:
        values = values.to(z).expand(shape)
    except RuntimeError as error:
        raise ReplayError(
            f"Values for {len(chosen)} heads of {site} must have shape {list(shape)} (batch, "
            f"query, head, value_width) or fewer axes of 1, got {list(values.shape)}."
        ) from error
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    if order != list(range(len(chosen))):
        chosen, values = [chosen[i] for i in order], values[:, :, order]
    return Change(tuple(chosen), values)


def projecting(change: Change) -> Action:
    """Makes a projection read changed heads."""

    def act(forward: Forward, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x, values = args[0], change.values
        width = values.shape[-1]
        z = x.reshape(*values.shape[:2], x.shape[-1] // width, width)
        return forward(change.of(z).reshape(x.shape), *args[1:], **named)

    return Action(act)


@contextmanager
def edited(subject: Subject, changes: Mapping[Site, Change]) -> Iterator[None]:
    """The changes as plain edits, for the length of a ``with`` block that runs the model once."""
    with edit(subject, *(_edit(site, change) for site, change in changes.items())):
        yield


def _edit(site: Site, change: Change) -> FunctionEdit:
    left = {"query": 0, "head": 0}

    def put(old: Tensor, place: EditPlace) -> Tensor:
        # A layer may hand out its z in several parts: of its queries, or of its heads.
        query, head = left["query"], left["head"]
        part = change.values[:, query : query + old.shape[1], head : head + old.shape[2]]
        left["head"] = (head + old.shape[2]) % len(change.heads)
        if not left["head"]:
            left["query"] = (query + old.shape[1]) % change.values.shape[1]
        return part

    return edit_z([Head(site.tower, site.layer, head) for head in change.heads], put)
