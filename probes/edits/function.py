"""Edit pattern or scores with a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from probes.edits.edit import EditPlace


@dataclass(frozen=True)
class FunctionEdit:
    """A function applied to scores, patterns or z of the chosen heads."""

    heads: Any
    function: Callable[[Tensor, EditPlace], Tensor]
    stage: Literal["scores", "pattern", "z"]

    @property
    def label(self) -> str:
        return f"edit_{self.stage}({getattr(self.function, '__name__', 'function')})"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        return self.function(values, place)


def edit_pattern(heads: Any, function: Callable[[Tensor, EditPlace], Tensor]) -> FunctionEdit:
    """Replace the pattern of heads by a function of it.

    The function gets ``[batch head row key]`` of one tile (a block of query rows; keys that none
    of them may read are left out) and an `EditPlace`, and returns the same shape. Rows are used
    as they come back: they need not sum to 1.
    """
    return FunctionEdit(heads, function, "pattern")


def edit_scores(heads: Any, function: Callable[[Tensor, EditPlace], Tensor]) -> FunctionEdit:
    """Replace the scores of heads, before the softmax, by a function of them.

    As `edit_pattern`. Forbidden pairs are at -1e30. Where a model writes out its own softmax the
    scores are known up to a constant per row, which a softmax does not see.
    """
    return FunctionEdit(heads, function, "scores")


def edit_z(heads: Any, function: Callable[[Tensor, EditPlace], Tensor]) -> FunctionEdit:
    """Replace ``z [batch query head head_width]`` of heads by a function of it."""
    return FunctionEdit(heads, function, "z")
