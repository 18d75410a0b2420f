"""Which patches of the vision tower each image position of the language model stands for.

A position stands for one patch (LLaVA), or for a square of patches that were merged into it
(Qwen-VL, InternVL, Gemma 3). Patches that no position stands for (a CLS token, padding that was cut
off) are nobody's; a CLS token that the language model reads stands for no patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from probes.tokens.map import TokenMap, TowerTokens

_TOLERANCE = 1e-2
"""Of the width of a box, within which edges count as the same: maps keep boxes in float32."""


class CorrespondenceError(ValueError):
    """It cannot be told which patches a position stands for; the message says why."""


@dataclass(frozen=True)
class Correspondence:
    """The image positions of a batch and the patches they stand for.

    Attributes:
        position: long ``[position]``: flat positions in the language tower's map, ascending.
        patches: long ``[position patch]``: flat positions in the vision tower's map, row by row;
            -1 where a position stands for no patch.
    """

    position: Tensor
    patches: Tensor

    @property
    def placed(self) -> Tensor:
        """Bool ``[position]``: which positions stand for patches."""
        return (self.patches >= 0).all(-1)

    def to_positions(self, values: Tensor, how: Literal["mean", "sum", "max"] = "mean") -> Tensor:
        """A number per patch ``[... patch]`` as one per position ``[... position]``.

        NaN where a position stands for no patch.

        Args:
            values: floating, over all flat positions of the vision tower.
        """
        gathered = values[..., self.patches.clamp_min(0).to(values.device)]
        found = gathered.amax(-1) if how == "max" else getattr(gathered, how)(-1)
        return found.masked_fill(~self.placed.to(values.device), math.nan)

    def to_patches(self, values: Tensor, count: int) -> Tensor:
        """A number per position as one per patch: each patch gets that of its position.

        Args:
            values: ``[position]``.
            count: positions of the vision tower.

        Returns:
            Float ``[count]``, NaN for patches that no position stands for.
        """
        found = torch.full((count,), math.nan, device=values.device)
        placed = self.placed.to(values.device)
        patches = self.patches.to(values.device)[placed]
        found[patches] = values.float()[placed][:, None].expand_as(patches)
        return found


def correspondence(
    tokens: TokenMap, language: str = "language", vision: str = "vision"
) -> Correspondence:
    """Match the image positions of two towers by image, tile and place in the grid.

    The number of patches that are merged is found by trying: the squares of patches must fill the
    boxes of their positions, or, where boxes are not known, the grids must have the same shape.

    Raises:
        CorrespondenceError: a tower is not mapped; positions gather from a whole image (learned
            queries); places are not known; or the language model reads an interpolated grid, whose
            positions mix patches.
    """
    for tower in (language, vision):
        if tower not in tokens:
            raise CorrespondenceError(_untold(f"the positions of {tower} are not mapped"))
    read, seen = tokens[language], tokens[vision]
    position = read.has_role("image").nonzero()[:, 0]
    if not len(position):
        raise CorrespondenceError(_untold(f"no position of {language} is an image's"))
    placed = read.row[position] >= 0
    _refuse_unplaced(read, position, placed)
    patch = (seen.has_role("image", "pad") & (seen.row >= 0)).nonzero()[:, 0]
    if not len(patch):
        raise CorrespondenceError(_untold(f"the places of the patches of {vision} are not known"))
    lookup = _Lookup(seen, patch)
    most = math.isqrt(len(patch) // max(int(placed.sum()), 1)) + 2
    for side in range(1, most + 1):
        squares = lookup.squares(read, position[placed], side)
        if squares is not None and _fill_boxes(read, position[placed], seen, squares, side):
            patches = torch.full((len(position), side * side), -1)
            patches[placed] = squares
            return Correspondence(position, patches)
    raise CorrespondenceError(
        _untold(
            f"the grid that {language} reads is not the one of {vision} nor one of merged squares, "
            "so it was interpolated and a position mixes patches"
        )
    )


def owners(tokens: TowerTokens, position: Tensor) -> Tensor:
    """Long ``[position]``: which tile of which image of which example, numbered as they come."""
    keys = torch.stack([column[position] for column in (tokens.example, tokens.image, tokens.tile)])
    _, group = keys.unique(dim=1, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(
        0, group, torch.arange(len(group)), "amin"
    )
    return first.argsort().argsort()[group]


class _Lookup:
    """Patches by example, image, tile, row and column."""

    def __init__(self, seen: TowerTokens, patch: Tensor) -> None:
        columns = (seen.example, seen.image, seen.tile, seen.row, seen.column)
        self._sizes = [int(column[patch].max()) + 1 for column in columns]
        key = self._key([column[patch] for column in columns])
        self._sorted, order = key.sort()
        self._patch = patch[order]
        if bool((self._sorted[1:] == self._sorted[:-1]).any()):
            raise CorrespondenceError(_untold("several patches have the same place"))

    def squares(self, read: TowerTokens, position: Tensor, side: int) -> Tensor | None:
        """Long ``[position side * side]``; None where one of the patches does not exist."""
        offset = torch.arange(side)
        row = read.row[position, None] * side + offset.repeat_interleave(side)
        column = read.column[position, None] * side + offset.repeat(side)
        rest = [
            values[position, None].expand_as(row)
            for values in (read.example, read.image, read.tile)
        ]
        columns = [*rest, row, column]
        fits = [values < size for values, size in zip(columns, self._sizes, strict=True)]
        if not all(bool(fit.all()) for fit in fits):
            return None
        key = self._key(columns)
        found = torch.searchsorted(self._sorted, key).clamp_max(len(self._sorted) - 1)
        return self._patch[found] if bool((self._sorted[found] == key).all()) else None

    def _key(self, columns: list[Tensor]) -> Tensor:
        key = torch.zeros_like(columns[0])
        for column, size in zip(columns, self._sizes, strict=True):
            key = key * size + column
        return key


def _refuse_unplaced(read: TowerTokens, position: Tensor, placed: Tensor) -> None:
    """Raise where all positions of a tile have no place; a few without are CLS or registers."""
    owner = owners(read, position)
    with_place = torch.zeros(int(owner.max()) + 1, dtype=torch.long).index_add_(
        0, owner, placed.long()
    )
    if bool((with_place == 0).any()):
        raise CorrespondenceError(
            _untold(
                f"image positions of {read.tower} have no place in the image (learned queries "
                "gather from all of it, or the processor is not understood)"
            )
        )


def _fill_boxes(
    read: TowerTokens, position: Tensor, seen: TowerTokens, squares: Tensor, side: int
) -> bool:
    """Whether the boxes of squares of patches are those of their positions."""
    mine, parts = read.box[position], seen.box[squares]
    known = ~mine[:, 0].isnan()
    if not bool(known.any()):
        return _same_shape(read, position, seen, side)
    low = parts[..., :2].nan_to_num(math.inf).amin(1)
    high = parts[..., 2:].nan_to_num(-math.inf).amax(1)
    off = (torch.cat([low, high], dim=-1) - mine)[known].abs().amax()
    width = (mine[known][:, 2:] - mine[known][:, :2]).amax()
    return bool(off <= _TOLERANCE * width)


def _same_shape(read: TowerTokens, position: Tensor, seen: TowerTokens, side: int) -> bool:
    patch = (seen.row >= 0).nonzero()[:, 0]
    shapes = [
        (int(tower.row[index].max()) + 1, int(tower.column[index].max()) + 1)
        for tower, index in ((read, position), (seen, patch))
    ]
    return shapes[0] == (shapes[1][0] // side, shapes[1][1] // side)


def _untold(why: str) -> str:
    return (
        f"Which patches an image position stands for cannot be told: {why}. "
        "Use what needs no patches of the vision tower, or another model."
    )
