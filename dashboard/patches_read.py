"""The patches that a firing read, laid out as they lie on the pictures: values and edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dashboard.firing_words import brought

if TYPE_CHECKING:
    from sae.reading.windows import FiringView

_EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Tile:
    """The patches of one tile: what each brings, and the edges between them.

    Attributes:
        values: what each patch brings, ``[row column]``; NaN where it was not read.
        across: edges of the columns in pixels of the picture, ``[column + 1]``.
        down: edges of the rows, ``[row + 1]``.
        first_row, first_column: of `values` in the tile: padding is left out.
    """

    number: int
    values: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    first_row: int
    first_column: int


def images_read(view: FiringView) -> list[int]:
    """Which images of the example have patches among the sources of a firing, most first."""
    sums: dict[int, float] = {}
    by_tile = tiles_read(view, None)
    for image, _ in by_tile:
        tiles = [tile for (each, _), tile in by_tile.items() if each == image]
        sums[image] = sum(float(np.nansum(tile.values.clip(0))) for tile in tiles)
    return sorted(sums, key=lambda image: (-sums[image], image))


def tiles_read(view: FiringView, head: int | None) -> dict[tuple[int, int], Tile]:
    """The patches that were read, by image and tile."""
    sources = view.attribution.sources
    tokens = view.attribution.sources.tokens[view.attribution.site.tower]
    own = int(tokens.example[view.attribution.destination])
    boxes = sources.map.box.double()[sources.index.clamp_min(0)]
    grids = sources.on_patches(brought(view.attribution, head))
    edges = [sources.on_patches(boxes[:, number]) for number in range(len(_EDGES))]
    found = {}
    for (example, image, tile), grid in sorted(grids.items()):
        if example != own:
            continue
        corners = {
            name: by_tile[example, image, tile].numpy()
            for name, by_tile in zip(_EDGES, edges, strict=True)
        }
        placed = _placed(tile, grid.numpy(), corners)
        if placed is not None:
            found[image, tile] = placed
    return found


def _placed(
    number: int, values: NDArray[np.float64], corners: Mapping[str, NDArray[np.float64]]
) -> Tile | None:
    """A tile without what lies in its padding, None if that is all of it."""
    known = np.isfinite(corners["left"])
    if not known.any():
        return None
    (rows,), (columns,) = (np.nonzero(known.any(axis)) for axis in (1, 0))
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    left, top, right, bottom = (corners[name][inside] for name in _EDGES)
    across = np.append(np.nanmin(left, 0), np.nanmax(right))
    down = np.append(np.nanmin(top, 1), np.nanmax(bottom))
    cells = np.where(known, values, np.nan)[inside]
    return Tile(number, cells, across, down, int(rows[0]), int(columns[0]))


def panels_of(tiles: Sequence[Tile]) -> list[tuple[str, list[Tile]]]:
    """All tiles together, or the whole image (tile 0) apart where others lie over it."""
    whole = [tile for tile in tiles if tile.number == 0]
    others = [tile for tile in tiles if tile.number != 0]
    if any(_overlap(one, other) for one in whole for other in others):
        return [("the whole image", whole), ("enlarged, in tiles", others)]
    return [("", list(tiles))]


def _overlap(one: Tile, other: Tile) -> bool:
    spans = ((one.across, other.across), (one.down, other.down))
    return all(min(a[-1], b[-1]) - max(a[0], b[0]) > 1e-3 for a, b in spans)
