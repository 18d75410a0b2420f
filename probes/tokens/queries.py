"""Learned queries between vision and language: BLIP-2, InstructBLIP, Idefics2.

A query gathers from the whole image (or tile), so its position in the language model has the
role ``image`` and no place: row and column are -1. The vision tower in front of it is mapped as
usual; Idefics2 pads all canvases of a batch to one size, and patches of padding have the role
``pad``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probes.tokens.context import Context, TowerFacts
from probes.tokens.map import ROLES, TowerTokens
from probes.tokens.patches import Patches, Placement, grid, unplaced
from probes.tokens.vit import extras_of, single_tiles, tower_of_images, vision_tokens


def matches(context: Context) -> bool:
    """Whether the configuration has a Q-Former or a perceiver between the towers."""
    return isinstance(context.tensors.get("pixel_values"), Tensor) and bool(_queries(context))


def language(context: Context) -> list[Patches] | None:
    """As many positions without a place as there are queries, for each tile of each image."""
    count = _queries(context)
    tiles = _tiles(context)
    return [
        Patches.join([unplaced(count, tile=tile) for _, tile in tiles])
        for _ in range(context.images)
    ]


def resampler(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row of queries for each canvas."""
    tiles = _tiles(context)
    pieces = [unplaced(_queries(context), tile=tile) for _, tile in tiles] * context.images
    images = [image for image in range(context.images) for _ in tiles]
    return tower_of_images(context, facts.name, pieces, images)


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row per canvas."""
    pixels = context.tensors["pixel_values"]
    if pixels.ndim == 4:
        tiles = single_tiles(context)
        return None if tiles is None else vision_tokens(context, facts, tiles)
    extras = extras_of(context, facts.path)
    mask = context.tensors.get("pixel_attention_mask")
    tiles = _tiles(context)
    real = (pixels != 0).flatten(0, 1).flatten(1).any(-1)
    if extras is None or mask is None or int(real.sum()) != len(tiles) * context.images:
        return None
    canvases = mask.flatten(0, 1)[real]
    high, wide = extras.patch
    rows, columns = pixels.shape[-2] // high, pixels.shape[-1] // wide
    pieces, images = [], []
    for index, canvas in enumerate(canvases):
        image, (quarter, tile) = index // len(tiles), tiles[index % len(tiles)]
        place = _placement(context.image_sizes[image], quarter, canvas)
        patches = grid(rows, columns, (wide, high), place, tile)
        padding = torch.isnan(patches.box[:, 0])
        role = torch.where(padding, ROLES.index("pad"), patches.role)
        pieces.append(replace(patches, role=role))
        images.append(image)
    return tower_of_images(context, facts.name, pieces, images)


def _queries(context: Context) -> int:
    perceiver = getattr(context.config, "perceiver_config", None)
    if perceiver is not None:
        return int(getattr(perceiver, "resampler_n_latents", 0) or 0)
    if getattr(context.config, "qformer_config", None) is None:
        return 0
    return int(getattr(context.config, "num_query_tokens", 0) or 0)


def _tiles(context: Context) -> list[tuple[int | None, int]]:
    """Quarter (``None`` for the whole image) and tile of each canvas of an image."""
    if getattr(context.image_processor, "do_image_splitting", False):
        return [(0, 1), (1, 2), (2, 3), (3, 4), (None, 0)]
    return [(None, 0)]


def _placement(size: tuple[int, int], quarter: int | None, mask: Tensor) -> Placement:
    """The image, or a quarter of it, stretched to the part of the canvas that is no padding."""
    width, height = size
    high, wide = int(mask[:, 0].sum()), int(mask[0].sum())
    if quarter is None:
        return Placement.stretched(width, height, (wide, high))
    middle_x, middle_y = width // 2, height // 2
    left, right = (0, middle_x) if quarter % 2 == 0 else (middle_x, width)
    top, bottom = (0, middle_y) if quarter < 2 else (middle_y, height)
    scale_x, scale_y = (right - left) / wide, (bottom - top) / high
    region = (left, top, right, bottom)
    return Placement(width, height, left, top, scale_x, scale_y, region)
