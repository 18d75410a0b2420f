"""Packed patches of any image size: Qwen2-VL and its kin (``image_grid_thw``), and Pixtral.

Qwen's processor lays out patches in blocks of ``merge x merge``, so that the language model reads
one position per block. The vision tower runs one sequence per image; Qwen2.5 reorders its blocks
by attention window. Pixtral runs all images of a batch in one sequence, row by row.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probes.tokens.context import Context, TowerFacts, as_list
from probes.tokens.map import TowerTokens
from probes.tokens.patches import Patches, Placement, grid, unplaced
from probes.tokens.vit import extras_of, tower_of_images


def matches(context: Context) -> bool:
    """Whether the tensors say how many rows and columns of patches each image has."""
    return _grids(context) is not None


def language(context: Context) -> list[Patches] | None:
    """One position per block of patches, row by row."""
    patch = _patch(context)
    grids = _grids(context)
    if patch is None or grids is None:
        return None
    merge = _merge(context)
    found = []
    for image, (frames, rows, columns) in enumerate(grids):
        place = _placement(context, image, rows, columns, patch)
        cell = (patch[1] * merge, patch[0] * merge)
        found.extend([grid(rows // merge, columns // merge, cell, place)] * frames)
    return found if len(found) == context.images else None


def vision(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """Qwen: one row per image, in the order in which its patches are packed. Pixtral: one row."""
    patch = _patch(context)
    grids = _grids(context)
    if patch is None or grids is None or any(frames != 1 for frames, _, _ in grids):
        return None
    pieces = []
    for image, (_, rows, columns) in enumerate(grids):
        place = _placement(context, image, rows, columns, patch)
        whole = grid(rows, columns, (patch[1], patch[0]), place)
        order = _order(context, rows, columns)
        pieces.append(whole.take(order) if order is not None else unplaced(len(whole), tile=0))
    tokens = tower_of_images(context, facts.name, pieces, list(range(context.images)))
    if not _is_pixtral(context):
        return tokens
    return replace(tokens, starts=tokens.starts[[0, -1]])


def _grids(context: Context) -> list[tuple[int, int, int]] | None:
    """Frames, rows and columns of patches of each image."""
    packed = context.tensors.get("image_grid_thw")
    if packed is not None:
        grids = [tuple(int(size) for size in one) for one in as_list(packed)]
        return grids if len(grids) == context.images else None  # type: ignore[return-value]
    sizes, patch = context.tensors.get("image_sizes"), _patch(context)
    if sizes is None or patch is None or not _is_pixtral(context):
        return None
    return [(1, int(high) // patch[0], int(wide) // patch[1]) for high, wide in as_list(sizes)]


def _is_pixtral(context: Context) -> bool:
    return getattr(context.vision_config, "model_type", "") == "pixtral"


def _patch(context: Context) -> tuple[int, int] | None:
    for holder in (context.vision_config, context.image_processor):
        found = getattr(holder, "patch_size", None)
        if found is not None:
            return context.pair(found)
    extras = extras_of(context)
    return None if extras is None else extras.patch


def _merge(context: Context) -> int:
    """Patches on each side of a block that becomes one position of the language model."""
    for holder in (context.image_processor, context.processor, context.config):
        for name in ("merge_size", "spatial_merge_size"):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    value = getattr(context.vision_config, "spatial_merge_size", 1)
    return value if isinstance(value, int) else 1


def _placement(
    context: Context, image: int, rows: int, columns: int, patch: tuple[int, int]
) -> Placement:
    width, height = context.image_sizes[image]
    return Placement.stretched(width, height, (columns * patch[1], rows * patch[0]))


def _order(context: Context, rows: int, columns: int) -> Tensor | None:
    """Indices, in a grid counted row by row, of the patches as the tower runs them."""
    if _is_pixtral(context):
        return torch.arange(rows * columns)
    packed = _packing(_packer(context), rows, columns, _merge(context))
    config = context.vision_config
    if packed is None or not getattr(config, "fullatt_block_indexes", None):
        return packed
    from transformers.vision_utils import get_vision_window_index

    merge = config.spatial_merge_size
    blocks, _ = get_vision_window_index(
        torch.tensor([[1, rows, columns]]), merge, config.window_size, config.patch_size
    )
    return packed.reshape(-1, merge * merge)[blocks].flatten()


def _packer(context: Context) -> Any:
    """What packed the patches; tensors of a Qwen model without a processor came from Qwen's."""
    model_type = getattr(context.config, "model_type", "")
    if context.processor is not None or not re.match(r"qwen[\d_]+vl", model_type):
        return context.image_processor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil()


def _packing(processor: Any, rows: int, columns: int, merge: int) -> Tensor | None:
    """The processor's own order: it packs a picture in which every patch is its index."""
    if not hasattr(processor, "patchify"):
        return None
    import numpy as np

    numbers = np.arange(rows * columns, dtype=np.float32).reshape(1, rows, columns)
    settings = {"patch_size": 1, "merge_size": merge, "temporal_patch_size": 1}
    try:
        if any(base.__name__ == "PilBackend" for base in type(processor).__mro__):
            packed = processor.patchify(numbers, **settings)[0]
        else:
            packed = processor.patchify(torch.from_numpy(numbers)[None], **settings)[0][0]
    except (TypeError, ValueError, RuntimeError):
        return None
    order = torch.as_tensor(np.asarray(packed).reshape(rows * columns, -1)[:, 0].copy()).long()
    return order if bool((order.sort()[0] == torch.arange(rows * columns)).all()) else None
