"""Multiply what heads give out by a factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from probes.edits.edit import EditPlace


@dataclass(frozen=True)
class Scale:
    """``z`` of the chosen heads times ``factor``: 0 removes, 1 changes nothing, 2 doubles.

    The output bias stays, and with a value bias its share is scaled too.
    """

    heads: Any
    factor: float
    stage: Literal["z"] = "z"

    @property
    def label(self) -> str:
        return f"scale({self.factor:g})"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        return values * self.factor


def scale(heads: Any, factor: float) -> Scale:
    """Multiply ``z`` of heads by a factor.

    >>> scale("language.L3H5", 2.0).label
    'scale(2)'
    """
    return Scale(heads, float(factor))


def zero(heads: Any) -> Scale:
    """Set ``z`` of heads to zero (zero ablation; off the data's distribution)."""
    return Scale(heads, 0.0)
