"""One canvas per image, every patch a token: LLaVA, PaliGemma, Gemma 3 and their kin.

The language model reads the patches of the vision tower row by row, with or without its CLS
token; Gemma 3 first averages squares of patches.
"""

from __future__ import annotations

import math

from torch import Tensor

from probes.tokens.context import Context, TowerFacts
from probes.tokens.map import TowerTokens
from probes.tokens.patches import Patches, grid
from probes.tokens.vit import Extras, extras_of, single_tiles, tile_patches, vision_tokens

_MIXED = ("qformer_config", "perceiver_config", "resampler_config", "num_query_tokens")
"""Settings of models whose image tokens are learned queries: those have no place in the image."""


def matches(context: Context) -> bool:
    """Whether the batch has one canvas per image and the image tokens are patches of it."""
    pixels = context.tensors.get("pixel_values")
    return (
        isinstance(pixels, Tensor)
        and pixels.ndim == 4
        and pixels.shape[0] == context.images
        and not any(getattr(context.config, name, None) is not None for name in _MIXED)
    )


def language(context: Context) -> list[Patches] | None:
    """What the language tower reads of each image."""
    pixels, extras = context.tensors["pixel_values"], extras_of(context)
    if extras is None:
        return None
    rows, columns = pixels.shape[-2:]
    side = pooled_side(context, extras, rows, columns)
    found = []
    for _, tile, placement in single_tiles(context) or []:
        if side is not None:
            cell = (columns / side, rows / side)
            found.append(grid(side, side, cell, placement, tile))
            continue
        patches = tile_patches(extras, rows, columns, placement, tile)
        found.append(_selected(context, extras, patches))
    return found


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row per image."""
    tiles = single_tiles(context)
    return None if tiles is None else vision_tokens(context, facts, tiles)


def pooled_side(context: Context, extras: Extras, rows: int, columns: int) -> int | None:
    """Side of the grid that is left after squares of patches are averaged, if they are."""
    count = getattr(context.config, "mm_tokens_per_image", None)
    if not isinstance(count, int):
        return None
    side = math.isqrt(count)
    fits = side * side == count and (rows // extras.patch[0]) % side == 0
    return side if fits and rows == columns else None


def _selected(context: Context, extras: Extras, patches: Patches) -> Patches:
    strategy = context.setting("vision_feature_select_strategy")
    if strategy is None:
        strategy = "patches"
    import torch

    first = sum(count for _, count in extras.before)
    last = len(patches) - sum(count for _, count in extras.after)
    if strategy == "full":
        first, last = 0, len(patches)
    elif strategy == "default":
        # LLaVA drops one token, whatever it is: a tower without CLS loses its first patch.
        first, last = 1, len(patches)
    chosen = patches.take(torch.arange(first, last))
    return as_image(chosen)


def as_image(patches: Patches) -> Patches:
    """The same positions, all with the role ``image``: so the language tower sees them."""
    from dataclasses import replace

    import torch

    from probes.tokens.map import ROLES

    return replace(patches, role=torch.full_like(patches.role, ROLES.index("image")))
