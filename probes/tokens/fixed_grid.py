"""One canvas per image, every patch a token: LLaVA, PaliGemma, plain vision transformers.

The language model reads the patches of the vision tower row by row, with or without its CLS
token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probes.tokens.context import Context, TowerFacts
from probes.tokens.map import ROLES, TowerTokens
from probes.tokens.patches import Patches
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
    return [
        _selected(context, extras, tile_patches(extras, rows, columns, placement, tile))
        for _, tile, placement in single_tiles(context) or []
    ]


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """One row per image."""
    tiles = single_tiles(context)
    return None if tiles is None else vision_tokens(context, facts, tiles)


def _selected(context: Context, extras: Extras, patches: Patches) -> Patches:
    strategy = context.setting("vision_feature_select_strategy")
    if strategy is None:
        strategy = "patches"
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
    return replace(patches, role=torch.full_like(patches.role, ROLES.index("image")))
