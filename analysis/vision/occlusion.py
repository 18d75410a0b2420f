"""What an answer loses when a piece of the input is hidden, piece by piece.

An image is covered with its own mean colour over a block of patches, in the original picture, and
goes through the processor again: so every tile that shows the place loses it. A token of an
encoder's text is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.inputs import Example, open_image

if TYPE_CHECKING:
    from probes.tokens.map import TowerTokens

MOST_BLOCKS = 64
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Blocks:
    """Pieces of one example's input, each hidden alone.

    Attributes:
        positions: long ``[position]``: flat positions of the input in the map of their tower.
        block: long ``[position]``: the piece that each belongs to.
        places: of images: image and box in pixels of each piece; empty for text.
    """

    positions: Tensor
    block: Tensor
    places: tuple[tuple[int, Box], ...] = ()

    @property
    def count(self) -> int:
        return int(self.block.max()) + 1 if self.block.numel() else 0

    def summed(self, values: Tensor) -> Tensor:
        """``[... piece]``: values ``[... position]`` added up within each piece."""
        total = values.new_zeros(*values.shape[:-1], self.count)
        return total.index_add_(-1, self.block.to(values.device), values)


def text_blocks(positions: Tensor, most: int = MOST_BLOCKS) -> Blocks:
    """Tokens one by one, or runs of them where they are many."""
    run = ceil(len(positions) / most) if len(positions) else 1
    return Blocks(positions, torch.arange(len(positions)) // run)


def image_blocks(tokens: TowerTokens, positions: Tensor, most: int = MOST_BLOCKS) -> Blocks:
    """Patches one by one, or squares of patches where they are many.

    The squares are those of each image's first tile (the thumbnail, where there is one). Positions
    of other tiles belong to the square that their middle lies in; those in none are left out, and
    so are positions whose place is not known.
    """
    box = tokens.box[positions].double()
    grid = (tokens.row[positions] >= 0) & ~box.isnan().any(-1)
    positions, box = positions[grid], box[grid]
    image, tile = tokens.image[positions], tokens.tile[positions]
    base = torch.zeros(len(positions), dtype=torch.bool)
    for which in image.unique().tolist():
        base |= (image == which) & (tile == tile[image == which].min())
    row, column = tokens.row[positions], tokens.column[positions]
    side = 1
    while True:
        code = torch.stack([image, row // side, column // side], dim=-1)[base]
        squares, number = torch.unique(code, dim=0, return_inverse=True)
        if len(squares) <= most or side > int(max(row.max(), column.max())):
            break
        side += 1
    places, block = [], torch.full((len(positions),), -1)
    block[base] = number
    middle = (box[:, :2] + box[:, 2:]) / 2
    for index, square in enumerate(squares.tolist()):
        mine = box[base][number == index]
        left, top = mine[:, :2].amin(0).tolist()
        right, bottom = mine[:, 2:].amax(0).tolist()
        places.append((int(square[0]), (left, top, right, bottom)))
        inside = (middle[:, 0] >= left) & (middle[:, 0] < right) & (image == square[0])
        inside &= (middle[:, 1] >= top) & (middle[:, 1] < bottom)
        block[inside & ~base] = index
    kept = block >= 0
    return Blocks(positions[kept], block[kept], tuple(places))


def covered(example: Example, places: Sequence[tuple[int, Box]]) -> list[Example]:
    """The example once for each place, with that place of its image covered."""
    pictures = [open_image(picture) for picture in example.pictures]
    colours = [_mean_colour(picture) for picture in pictures]
    made = []
    for number, (which, box) in enumerate(places):
        shown = list(pictures)
        shown[which] = _filled(pictures[which], box, colours[which])
        made.append(replace(example, id=f"{example.id}#{number}", image=None, images=tuple(shown)))
    return made


def _mean_colour(picture: Any) -> tuple[int, int, int]:
    import numpy as np

    red, green, blue = np.asarray(picture, dtype=float).mean((0, 1)).round().astype(int).tolist()
    return red, green, blue


def _filled(picture: Any, box: Box, colour: tuple[int, int, int]) -> Any:
    left, top, right, bottom = box
    copy = picture.copy()
    copy.paste(colour, (floor(left), floor(top), ceil(right), ceil(bottom)))
    return copy
