"""What an edit is: a change at an attention call, to scores, pattern or z of chosen heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from probes.heads import Head, Site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from probes.attention_call import AttentionCall, Tile

Selection = "str | Head | Site | Iterable[str | Head | Site]"


@dataclass(frozen=True)
class EditPlace:
    """Where an edit is applied.

    Attributes:
        heads: the chosen heads of this site, in the order of the head axis that ``apply`` gets.
        step: 0 for the prompt, n while the n-th generated token is fed back.
        call: the call, where the edit is applied at the call and not at the output projection.
        tile: the tile, for edits of scores and patterns.
    """

    site: Site
    heads: list[int]
    step: int
    call: AttentionCall | None = None
    tile: Tile | None = None


class Edit(Protocol):
    """A change to what chosen heads compute.

    Attributes:
        label: how reports and errors name it, such as ``scale(2.0)``.
        heads: a selection as `probes.heads.select_heads` reads it.
        stage: ``scores`` (before the softmax), ``pattern`` (after it) or ``z`` (head outputs).
    """

    @property
    def label(self) -> str: ...

    @property
    def heads(self) -> str | Head | Site | Iterable[str | Head | Site]: ...

    @property
    def stage(self) -> Literal["scores", "pattern", "z"]: ...

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        """New values of the same shape.

        ``z`` arrives as ``[batch query head head_width]``, scores and patterns as
        ``[batch head query key]`` of one tile; only the chosen heads are in it.
        """
        ...


@dataclass
class EditReport:
    """What one edit did.

    Attributes:
        fired: how many calls or tiles it was applied to.
        touched: how many (example, query, head) rows it changed.
    """

    label: str
    heads: tuple[Head, ...]
    fired: int = 0
    touched: int = 0

    def __str__(self) -> str:
        return (
            f"{self.label} on {len(self.heads)} heads: fired {self.fired}, touched {self.touched}"
        )
