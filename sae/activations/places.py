"""Which example and which position of it a row of head outputs is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from probes.tokens.map import TowerTokens
from sae.activations.source import Activations, Chunk

if TYPE_CHECKING:
    from probes.inputs import Batch


@dataclass(frozen=True)
class Places:
    """Where rows come from, in words that do not depend on how examples were put together.

    Attributes:
        example: index in the source's ``ids``.
        position: which position of its example, counted within the tower from 0, padding left
            out: the same in whatever batch the example is run. `flat_position` finds it again.
    """

    example: Int[Tensor, " row"]
    position: Int[Tensor, " row"]


@dataclass(frozen=True)
class PlacedChunk:
    """Rows of one batch with their places.

    Attributes:
        number: which chunk of the pass they belong to; several batches may share one.
        rows: rows by site.
        places: places by site, of the same rows.
        batch: what was run; None where rows were read from a disk.
        flat: by site, the flat position of each row in the token map of ``batch``.
    """

    number: int
    rows: Chunk
    places: Mapping[str, Places]
    batch: Batch | None = None
    flat: Mapping[str, Int[Tensor, " row"]] = field(default_factory=dict)


@runtime_checkable
class PlacedActivations(Activations, Protocol):
    """A stream of head outputs that also says where each row comes from.

    Attributes:
        ids: the examples' ids, in the order of their indices.
        skipped: examples that could not be prepared so far: id and reason.
    """

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]: ...

    def placed_chunks(self, epoch: int, start: int = 0) -> Iterator[PlacedChunk]:
        """The rows of `chunks` in the same order, with their places.

        Chunks in which nothing could be prepared are left out.
        """
        ...


def ordinals(tokens: TowerTokens) -> Int[Tensor, " position"]:
    """Which position of its example each flat position is, padding left out and given -1.

    >>> from probes.tokens.map import blank_tokens
    >>> ordinals(blank_tokens("vision", [2, 1, 3], [0, 0, 1], "image")).tolist()
    [0, 1, 2, 0, 1, 2]
    """
    found, real = torch.full((len(tokens),), -1), ~tokens.has_role("pad")
    for example in tokens.example.unique():
        mine = (tokens.example == example) & real
        found[mine] = torch.arange(int(mine.sum()))
    return found


def flat_position(tokens: TowerTokens, example: int, position: int) -> int:
    """The flat position of a place in a token map, the other way round.

    Args:
        example: index of the example in the map's batch.

    Raises:
        ValueError: the example has fewer positions in this batch.
    """
    mine = ((tokens.example == example) & ~tokens.has_role("pad")).nonzero()[:, 0]
    if not 0 <= position < len(mine):
        raise ValueError(
            f"`position` must be one of the {len(mine)} positions that example {example} has in "
            f"tower {tokens.tower!r}, got {position}. Prepare the example as it was when its rows "
            "were made."
        )
    return int(mine[position])
