"""Images cut into equal tiles with one view of the whole: Idefics3, SmolVLM, InternVL, Gemma 3
and their kin.

Each canvas of the vision tower becomes a smaller grid of the language model, squares of patches
merged into one position. Idefics3 and InternVL show the tiles first and the whole image last,
Gemma 3 the whole image first. The whole image is tile 0 wherever it stands.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probes.tokens.context import Context, TowerFacts
from probes.tokens.map import TowerTokens
from probes.tokens.patches import Patches, Placement, grid
from probes.tokens.vit import extras_of, vision_tokens

Canvas = tuple[int, Placement]
"""Index of the tile, and how the image lies on it."""


def matches(context: Context) -> bool:
    """Whether the image processor cuts images in one of these ways, and squares are merged."""
    pixels = context.tensors.get("pixel_values")
    return (
        isinstance(pixels, Tensor)
        and _way(context.image_processor) is not None
        and merged_side(context) is not None
    )


def language(context: Context) -> list[Patches] | None:
    """The merged grid of every canvas of each image."""
    extras = extras_of(context)
    merge = merged_side(context)
    canvases = _canvases(context)
    if extras is None or merge is None or canvases is None:
        return None
    rows, columns = context.tensors["pixel_values"].shape[-2:]
    cell = (extras.patch[1] * merge, extras.patch[0] * merge)
    shape = rows // cell[1], columns // cell[0]
    return [
        Patches.join([grid(*shape, cell, place, tile) for tile, place in mine]) for mine in canvases
    ]


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row per canvas, in the order of the images and, within one, of their canvases."""
    canvases = _canvases(context)
    if canvases is None:
        return None
    tiles = [(image, tile, place) for image, mine in enumerate(canvases) for tile, place in mine]
    return vision_tokens(context, facts, tiles)


def merged_side(context: Context) -> int | None:
    """Patches on each side of a square that becomes one position of the language model."""
    config = context.config
    for name in ("scale_factor", "downsample_factor"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    ratio = getattr(config, "downsample_ratio", None)
    if isinstance(ratio, float):
        return round(1 / ratio)
    count, vision = getattr(config, "mm_tokens_per_image", None), context.vision_config
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if isinstance(count, int) and isinstance(side, int) and isinstance(patch, int):
        return side // patch // math.isqrt(count)
    return None


def _canvases(context: Context) -> list[list[Canvas]] | None:
    pixels = context.tensors["pixel_values"]
    way = _way(context.image_processor)
    if way is None:
        return None
    found = [
        way(context, *context.image_sizes[image], pixels.shape[-1])
        for image in range(context.images)
    ]
    return found if sum(len(mine) for mine in found) == _real(pixels) else None


def _real(pixels: Tensor) -> int:
    """Number of canvases that are no filling of the batch: models drop those of zeros alone."""
    if pixels.ndim == 4:
        return pixels.shape[0]
    return int((pixels != 0).flatten(0, 1).flatten(1).any(-1).sum())


def _setting(context: Context, name: str) -> Any:
    """A setting of the image processor as the whole processor calls it: with its own defaults."""
    own = getattr(context.processor, "images_kwargs", None)
    value = own.get(name) if isinstance(own, Mapping) else None
    return value if value is not None else getattr(context.image_processor, name, None)


def _way(processor: Any) -> Any:
    if hasattr(processor, "split_images") and getattr(processor, "max_image_size", None):
        return _of_rows_and_columns
    if hasattr(processor, "crop_image_to_patches"):
        return _of_best_canvas
    if hasattr(processor, "pan_and_scan") or hasattr(processor, "pan_and_scan_batched"):
        return _of_pan_and_scan
    return None


def _tiled(
    width: int, height: int, side: int, rows: int, columns: int, whole_first: bool = False
) -> list[Canvas]:
    whole = (0, Placement.stretched(width, height, (side, side)))
    if rows * columns == 0:
        return [whole]
    large = Placement.stretched(width, height, (columns * side, rows * side))
    tiles = [
        (1 + row * columns + column, large.window(column * side, row * side))
        for row in range(rows)
        for column in range(columns)
    ]
    return [whole, *tiles] if whole_first else [*tiles, whole]


def _of_rows_and_columns(context: Context, width: int, height: int, side: int) -> list[Canvas]:
    """Idefics3 and SmolVLM: enlarged to whole tiles, as the processor itself tells."""
    import numpy as np

    if not _setting(context, "do_image_splitting"):
        return _tiled(width, height, side, 0, 0)
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    made = context.image_processor(images=[[blank]], return_row_col_info=True)
    return _tiled(width, height, side, int(made["rows"][0][0]), int(made["cols"][0][0]))


def _of_best_canvas(context: Context, width: int, height: int, side: int) -> list[Canvas]:
    """InternVL and GOT-OCR: the arrangement of tiles whose shape is nearest to the image's."""
    least, most = _setting(context, "min_patches"), _setting(context, "max_patches")
    if not _setting(context, "crop_to_patches") or most <= 1:
        return _tiled(width, height, side, 0, 0)
    module = sys.modules[type(context.image_processor).__module__]
    columns, rows = module.get_optimal_tiled_canvas((height, width), (side, side), least, most)
    if columns * rows == 1:
        return _tiled(width, height, side, 0, 0)
    return _tiled(width, height, side, rows, columns)


def _of_pan_and_scan(context: Context, width: int, height: int, side: int) -> list[Canvas]:
    """Gemma 3: crops of long images, which the processor cuts out of a map of coordinates."""
    whole = _tiled(width, height, side, 0, 0)
    processor = context.image_processor
    if not _setting(context, "do_pan_and_scan"):
        return whole
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([x, y, x])
    pil = hasattr(processor, "pan_and_scan")
    cut = processor.pan_and_scan if pil else processor.pan_and_scan_batched
    crops = cut(
        positions.numpy() if pil else positions[None],
        _setting(context, "pan_and_scan_min_crop_size"),
        _setting(context, "pan_and_scan_max_num_crops"),
        _setting(context, "pan_and_scan_min_ratio_to_activate"),
    )
    for index, crop in enumerate(crops):
        corner = torch.as_tensor(crop).reshape(3, *crop.shape[-2:])[:, 0, 0].tolist()
        high, wide = crop.shape[-2:]
        place = Placement(width, height, corner[0], corner[1], wide / side, high / side)
        whole.append((index + 1, place))
    return whole
