"""Where rows of head outputs come from: what a training asks of a tensor, a store or a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Chunk = Mapping[str, Float[Tensor, "row width"]]
"""Rows by site; sites of different towers have different numbers of rows, also none."""


@runtime_checkable
class Activations(Protocol):
    """A stream of head outputs of one or several sites, which can be gone through again.

    Attributes:
        widths: heads x head width by site, such as ``{"language.L2": 128}``.
        heads: number of heads by site; 1 where rows are not split into heads.
        about: what it came from (model, data, digest, roles), for manifests; JSON values only.
    """

    @property
    def widths(self) -> Mapping[str, int]: ...

    @property
    def heads(self) -> Mapping[str, int]: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def chunks(self, epoch: int, start: int = 0) -> Iterator[Chunk]:
        """One pass over the data, beginning at chunk ``start``.

        The order depends on ``epoch`` and the source's own seed alone, so that a training can be
        taken up again at any chunk.
        """
        ...
