"""Patches of an image in the order in which a tower reads them, and where they lie in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.tokens.map import ROLES


@dataclass(frozen=True)
class Placement:
    """How a canvas (what the model sees) lies over the original image.

    The canvas pixel ``(x, y)`` shows the pixel ``(left + x * scale_x, top + y * scale_y)`` of
    the original, which is ``width`` x ``height`` pixels large. Where that lies outside the image,
    or outside ``region`` (left, top, right, bottom) if only a part was used, the canvas shows
    padding.
    """

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    scale_x: float = 1.0
    scale_y: float = 1.0
    region: tuple[float, float, float, float] | None = None

    @classmethod
    def stretched(cls, width: int, height: int, canvas: tuple[int, int]) -> Placement:
        """The whole image fills the canvas ``(width, height)``."""
        return cls(width, height, 0.0, 0.0, width / canvas[0], height / canvas[1])

    def window(self, left: float, top: float) -> Placement:
        """The same image seen through a window whose corner lies at this pixel of the canvas."""
        return replace(
            self, left=self.left + left * self.scale_x, top=self.top + top * self.scale_y
        )

    def boxes(self, edges: Tensor) -> Tensor:
        """Boxes in the original image of float ``edges [n, 4]`` on the canvas.

        What sticks out into the padding is cut off; boxes wholly in the padding become NaN.
        """
        scale = torch.tensor([self.scale_x, self.scale_y] * 2, dtype=torch.float64)
        shift = torch.tensor([self.left, self.top] * 2, dtype=torch.float64)
        left, top, right, bottom = self.region or (0.0, 0.0, self.width, self.height)
        least = torch.tensor([left, top] * 2, dtype=torch.float64)
        most = torch.tensor([right, bottom] * 2, dtype=torch.float64)
        boxes = (edges.double() * scale + shift).maximum(least).minimum(most)
        outside = (boxes[:, 2:] - boxes[:, :2]).amin(-1) <= 1e-6
        return boxes.masked_fill(outside[:, None], float("nan")).float()


@dataclass(frozen=True)
class Patches:
    """Positions that come from one image, as columns of length ``n`` like those of a token map."""

    role: Tensor
    tile: Tensor
    row: Tensor
    column: Tensor
    box: Tensor

    def __len__(self) -> int:
        return self.role.numel()

    def take(self, index: Tensor) -> Patches:
        """The positions at these indices, in that order."""
        return Patches(
            self.role[index],
            self.tile[index],
            self.row[index],
            self.column[index],
            self.box[index],
        )

    @classmethod
    def join(cls, parts: Sequence[Patches]) -> Patches:
        """Several pieces, one after the other."""
        if not parts:
            return unplaced(0)
        return cls(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("role", "tile", "row", "column", "box")
            )
        )


def grid(
    rows: int,
    columns: int,
    cell: tuple[float, float],
    placement: Placement | None,
    tile: int = 0,
) -> Patches:
    """A grid of patches, row by row; ``cell`` is the (width, height) of one on the canvas.

    >>> patches = grid(2, 3, (10, 10), Placement(60, 40, scale_x=2, scale_y=2))
    >>> patches.row.tolist(), patches.column.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    >>> patches.box[4].tolist()
    [20.0, 20.0, 40.0, 40.0]
    """
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    n = rows * columns
    if placement is None:
        box = torch.full((n, 4), float("nan"))
    else:
        corner = torch.stack([column, row], dim=-1).double() * torch.tensor(cell).double()
        box = placement.boxes(torch.cat([corner, corner + torch.tensor(cell).double()], dim=-1))
    role = torch.full((n,), ROLES.index("image"))
    return Patches(role, torch.full((n,), tile), row, column, box)


def unplaced(count: int, role: str = "image", tile: int = -1) -> Patches:
    """Positions of which only the role is known: no row, no column, no box."""
    unknown = torch.full((count,), -1)
    return Patches(
        torch.full((count,), ROLES.index(role)),
        torch.full((count,), tile),
        unknown,
        unknown,
        torch.full((count, 4), float("nan")),
    )
