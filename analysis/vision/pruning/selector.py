"""What a way of choosing image tokens is: the statistics it reads, and the tokens it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from analysis.vision.patch_statistics import Need


@dataclass(frozen=True)
class Depths:
    """Where the layers of a model are.

    Attributes:
        vision: number of layers of the vision tower.
        features: layer of the vision tower whose output the language model reads.
        pruned_from: layer of the language model from which pruned tokens are hidden.
    """

    vision: int
    features: int
    pruned_from: int


@dataclass(frozen=True)
class Tile:
    """The image tokens among which a choice is made, as columns ``[n]``.

    Attributes:
        row, column: place in the grid that the language model reads, -1 where it has none.
    """

    row: Tensor
    column: Tensor

    def __len__(self) -> int:
        return self.row.numel()


class Selector(Protocol):
    """A published way of choosing image tokens.

    Attributes:
        among: whether tokens compete within their ``tile`` (image or part of one, as the vision
            tower sees it) or within the whole ``prompt``.
    """

    @property
    def name(self) -> str: ...

    @property
    def among(self) -> Literal["tile", "prompt"]: ...

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        """The statistics that are read.

        Raises:
            ValueError: the model has too few layers for them.
        """
        ...

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        """Bool ``[n]``: the ``count`` tokens that are kept, 1 to n.

        Args:
            seen: float ``[n]`` of each need.
        """
        ...


def largest(scores: Tensor, count: int) -> Tensor:
    """Bool ``[n]``: the ``count`` largest scores; of equal ones the first.

    >>> largest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [False, True, True, False]
    """
    found = torch.zeros(len(scores), dtype=torch.bool)
    found[scores.cpu().argsort(descending=True, stable=True)[:count]] = True
    return found


def budget(keep: float, tokens: int) -> int:
    """How many of some tokens a share of them is: at least one."""
    return max(1, round(keep * tokens))
