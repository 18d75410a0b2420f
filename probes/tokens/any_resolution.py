"""Tiles of any resolution: LLaVA-NeXT and LLaVA-OneVision.

An image is shown twice: whole, as a thumbnail (tile 0), and enlarged to the best of several
resolutions, cut into tiles (1, 2, ... row by row). The language model reads the thumbnail, then
the rows of the enlarged image across its tiles, without the rows or columns that are padding, and
a newline embedding after each row. OneVision thins out grids that are too large.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probes.tokens.context import Context, TowerFacts, as_list
from probes.tokens.fixed_grid import as_image
from probes.tokens.map import TowerTokens
from probes.tokens.patches import Patches, Placement, grid, unplaced
from probes.tokens.vit import Extras, extras_of, tile_patches, vision_tokens


def matches(context: Context) -> bool:
    """Whether the processor cuts images into tiles by a list of resolutions."""
    return (
        context.setting("image_grid_pinpoints") is not None
        and context.tensors.get("image_sizes") is not None
        and isinstance(context.tensors.get("pixel_values"), Tensor)
    )


def language(context: Context) -> list[Patches] | None:
    """Thumbnail, then the enlarged image row by row, each row with its newline."""
    extras = extras_of(context)
    if extras is None:
        return None
    side = context.tensors["pixel_values"].shape[-1]
    found = []
    for image in range(context.images):
        thumbnail = tile_patches(extras, side, side, _thumbnail(context, image, side), 0)
        dropped = 1 if context.setting("vision_feature_select_strategy") == "default" else 0
        base = as_image(thumbnail.take(torch.arange(dropped, len(thumbnail))))
        newline = unplaced(1, "special", 0)
        if _tiled(context, image):
            found.append(Patches.join([base, _rows(context, extras, image, side)]))
        else:
            found.append(Patches.join([base, newline]))
    return found


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row per tile, the thumbnail of an image before its other tiles."""
    side = context.tensors["pixel_values"].shape[-1]
    tiles: list[tuple[int, int, Placement | None]] = []
    for image in range(context.images):
        tiles.append((image, 0, _thumbnail(context, image, side)))
        if _tiled(context, image):
            down, across = _shape(context, image, side)
            enlarged = _enlarged(context, image, side)
            for index in range(down * across):
                corner = (index % across * side, index // across * side)
                tiles.append((image, index + 1, enlarged.window(*corner)))
    return vision_tokens(context, facts, tiles)


def _tiled(context: Context, image: int) -> bool:
    """OneVision tiles an image only if its prompt has no other."""
    counts = context.tensors.get("batch_num_images")
    if counts is None:
        return True
    each = [count for count in as_list(counts) for _ in range(int(count))]
    return each[image] == 1


def _resolution(context: Context, image: int) -> tuple[int, int]:
    from transformers.image_processing_utils import select_best_resolution

    size = tuple(as_list(context.tensors["image_sizes"])[image])
    return select_best_resolution(size, context.setting("image_grid_pinpoints"))


def _shape(context: Context, image: int, side: int) -> tuple[int, int]:
    high, wide = _resolution(context, image)
    return high // side, wide // side


def _thumbnail(context: Context, image: int, side: int) -> Placement:
    width, height = context.image_sizes[image]
    if _tiled(context, image):
        return Placement.stretched(width, height, (side, side))
    square = max(width, height)
    scale = square / side
    left, top = (square - width) // 2, (square - height) // 2
    return Placement(width, height, -left, -top, scale, scale)


def _enlarged(context: Context, image: int, side: int) -> Placement:
    """The whole enlarged image with its padding, before it is cut into tiles."""
    width, height = context.image_sizes[image]
    target_height, target_width = _resolution(context, image)
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        wide, high = target_width, min(math.ceil(height * scale_x), target_height)
    else:
        wide, high = min(math.ceil(width * scale_y), target_width), target_height
    left, top = (target_width - wide) // 2, (target_height - high) // 2
    back_x, back_y = width / wide, height / high
    return Placement(width, height, -left * back_x, -top * back_y, back_x, back_y)


def _rows(context: Context, extras: Extras, image: int, side: int) -> Patches:
    down, across = _shape(context, image, side)
    per_row, per_column = side // extras.patch[1], side // extras.patch[0]
    rows, columns = down * per_column, across * per_row
    cell = (extras.patch[1], extras.patch[0])
    whole = grid(rows, columns, cell, _enlarged(context, image, side))
    top, left = _padding(context, image, rows, columns)
    kept = torch.arange(rows * columns).reshape(rows, columns)
    kept = kept[top : rows - top, left : columns - left]
    thin = _thinned(context, kept.shape[0], kept.shape[1], per_column)
    if thin is not None:
        edges = whole.box[kept[0, 0]], whole.box[kept[-1, -1]]
        body = _regrid(context, image, thin, torch.cat([edges[0][:2], edges[1][2:]]))
        rows, columns = thin
    else:
        body = whole.take(kept.flatten())
        tile = 1 + body.row // per_column * across + body.column // per_row
        body = Patches(body.role, tile, body.row % per_column, body.column % per_row, body.box)
        rows, columns = kept.shape
    pieces = []
    for row in range(rows):
        pieces.append(body.take(torch.arange(row * columns, (row + 1) * columns)))
        pieces.append(unplaced(1, "special"))
    return Patches.join(pieces)


def _padding(context: Context, image: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of patches that the model drops on each side (`unpad_image`)."""
    height, width = as_list(context.tensors["image_sizes"])[image]
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def _thinned(context: Context, rows: int, columns: int, side: int) -> tuple[int, int] | None:
    limit = context.setting("vision_aspect_ratio")
    if not isinstance(limit, str) or not limit.startswith("anyres_max_"):
        return None
    most = int(limit.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else None


def _regrid(context: Context, image: int, shape: tuple[int, int], area: Tensor) -> Patches:
    """An interpolated grid has lost its tiles: it counts as one tile over the same area."""
    width, height = context.image_sizes[image]
    left, top, right, bottom = area.tolist()
    rows, columns = shape
    cell = ((right - left) / columns, (bottom - top) / rows)
    return grid(rows, columns, cell, Placement(width, height, left, top), tile=1)
