"""Multiply the attention that some queries pay some keys, by role, and let rows keep their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probes.edits.edit import EditPlace


@dataclass(frozen=True)
class ScaleAttention:
    """``a_j <- factor a_j`` for the chosen keys; then the row is divided to have its old sum.

    A row whose weight is all on chosen keys, and a factor of 0, stays as it is.
    """

    heads: Any
    factor: float
    queries: str | tuple[str, ...] | None
    keys: str | tuple[str, ...]
    stage: Literal["pattern"] = "pattern"

    @property
    def label(self) -> str:
        asking = "all" if self.queries is None else "+".join(_names(self.queries))
        return f"scale_attention({asking} -> {'+'.join(_names(self.keys))}, {self.factor:g})"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        weights = 1 + (self.factor - 1) * place.keys_with(*_names(self.keys)).float()
        scaled = values * weights[:, None, None]
        left, total = scaled.sum(-1, keepdim=True), values.sum(-1, keepdim=True)
        new = torch.where(left > 0, scaled * (total / left.clamp_min(1e-30)), values)
        if self.queries is None:
            return new
        return torch.where(place.queries_with(*_names(self.queries))[:, None, :, None], new, values)


def scale_attention(
    heads: Any,
    factor: float,
    queries: str | tuple[str, ...] | None = None,
    keys: str | tuple[str, ...] = "image",
) -> ScaleAttention:
    """Multiply heads' attention to keys of some roles, as if their scores had ``log factor`` more.

    Args:
        factor: 1 changes nothing, 0 hides the keys, but from rows that see nothing else.
        queries, keys: role names, ``"text"`` or ``("image", "cls")``; no queries means all.

    >>> scale_attention("language.*", 2.0, queries="generated").label
    'scale_attention(generated -> image, 2)'
    """
    if factor < 0:
        raise ValueError(f"`factor` of scale_attention must be at least 0, got {factor:g}.")
    return ScaleAttention(heads, float(factor), queries, keys)


def _names(roles: str | tuple[str, ...]) -> tuple[str, ...]:
    return (roles,) if isinstance(roles, str) else tuple(roles)
