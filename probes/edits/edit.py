"""What an edit is: a change at an attention call, to scores, pattern or z of chosen heads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from torch import Tensor

from probes.heads import Head, Site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from probes.attention_call import AttentionCall, Tile
    from probes.inputs import Batch
    from probes.moment import Moment
    from probes.tokens.map import TokenMap

T = TypeVar("T")


@dataclass(frozen=True)
class EditPlace:
    """Where an edit is applied.

    Attributes:
        heads: the chosen heads of this site, in the order of the head axis that ``apply`` gets.
        step: 0 for the prompt, n while the n-th generated token is fed back.
        call: the call, where the edit is applied at the call and not at the output projection.
        tile: the tile, for edits of scores and patterns.
        moment: what all layers of this forward share; use the properties below.
        index: long ``[batch query]``, see `query_index`.
    """

    site: Site
    heads: list[int]
    step: int
    call: AttentionCall | None = None
    tile: Tile | None = None
    moment: Moment | None = None
    index: Tensor | None = None

    @property
    def batch(self) -> Batch:
        """The batch that is run.

        Raises:
            ValueError: the model was called by itself.
        """
        if self.moment is None or self.moment.batch is None:
            raise ValueError(self._unknown("the batch that is run", "the model was called alone"))
        return self.moment.batch

    @property
    def tokens(self) -> TokenMap:
        """Its token map, with generated positions.

        Raises:
            ValueError: the model was called by itself.
        """
        if self.moment is None or self.moment.tokens is None:
            raise ValueError(self._unknown("what each position is", "the model was called alone"))
        return self.moment.tokens

    @property
    def query_index(self) -> Tensor:
        """Long ``[batch query]``: flat position of each query in the token map of the tower.

        Raises:
            ValueError: the call does not fit the token map.
        """
        index = self.index if self.call is None else self.call.query_index
        if index is None:
            raise ValueError(self._unknown("what each position is", "this call does not fit"))
        return _of_tile(index, self.tile, is_query=True)

    @property
    def key_index(self) -> Tensor:
        """Long ``[batch key]``: flat position of each key in the token map of the keys' tower.

        Raises:
            ValueError: the call does not fit the token map.
        """
        return _of_tile(self._key_index(), self.tile, is_query=False)

    def queries_with(self, *roles: str) -> Tensor:
        """Bool ``[batch query]``: which queries (of the tile) have one of these roles."""
        index = self.index if self.call is None else self.call.query_index
        if index is None or self.moment is None or self.moment.tokens is None:
            raise ValueError(self._unknown("what each position is", "this call does not fit"))
        found = self.moment.with_role(self.site.tower, index, roles)
        return _of_tile(found, self.tile, is_query=True)

    def keys_with(self, *roles: str) -> Tensor:
        """Bool ``[batch key]``: which keys (of the tile) have one of these roles."""
        index = self._key_index()
        if self.moment is None or self.moment.tokens is None:
            raise ValueError(self._unknown("what each position is", "this call does not fit"))
        assert self.call is not None
        found = self.moment.with_role(self.call.key_tower or self.site.tower, index, roles)
        return _of_tile(found, self.tile, is_query=False)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all layers of this forward."""
        return make() if self.moment is None else self.moment.shared(key, make)

    def _key_index(self) -> Tensor:
        if self.call is None or self.call.key_index is None:
            raise ValueError(self._unknown("what each key is", "this call does not fit"))
        return self.call.key_index

    def _unknown(self, what: str, why: str) -> str:
        return (
            f"An edit at {self.site} must know {what}, but {why}, so the token map says nothing. "
            "Run a prepared batch with `subject.forward` or `subject.generate` (without beams)."
        )


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


def _of_tile(values: Tensor, tile: Tile | None, *, is_query: bool) -> Tensor:
    if tile is None:
        return values
    return values[tile.batch][:, tile.rows if is_query else slice(0, tile.keys)]


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
