"""The pixels behind the image positions of the language model, to blank some of them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.image_stand_ins import PIXELS, with_other_pixels
from probes.inputs import Batch, InputError
from probes.tokens.correspondence import Correspondence, owners

if TYPE_CHECKING:
    from probes.subject import Subject


def blanked(
    subject: Subject, batch: Batch, places: Correspondence, gone: Tensor
) -> dict[str, Tensor]:
    """The pixel tensors of a batch with the patches of some image positions in the mean colour.

    The colour is what the image processor subtracts, so zero after it. Every canvas is treated by
    itself: a part of an image that is shown twice, small and enlarged, may stay in one of them.

    Args:
        gone: bool ``[position]``: whose pixels are blanked.

    Raises:
        InputError: it is not known which pixels belong to a patch.
    """
    pixels = batch.tensors.get(PIXELS)
    if not isinstance(pixels, Tensor):
        raise InputError(
            "Pixels must be one tensor for parts of an image to be blanked, got "
            f"{type(pixels).__name__}. Prepare the batch from text and images."
        )
    hidden = pixel_mask(subject, batch, places, gone).to(pixels.device)
    blank = with_other_pixels(subject, batch, "blank", 0)[PIXELS]
    return {PIXELS: torch.where(hidden, blank, pixels)}


def pixel_mask(subject: Subject, batch: Batch, places: Correspondence, chosen: Tensor) -> Tensor:
    """Bool, broadcastable to the pixels: those of the patches that some positions stand for.

    Args:
        chosen: bool ``[position]``.

    Raises:
        InputError: it is not known which pixels belong to a patch.
    """
    pixels = batch.tensors[PIXELS]
    if pixels.ndim == 2:
        return _packed(subject, batch, places, chosen)
    tokens = batch.tokens["vision"]
    patch = (tokens.row >= 0).nonzero()[:, 0]
    canvas = torch.full((len(tokens),), -1)
    canvas[patch] = owners(tokens, patch)
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    real = torch.arange(len(flat))
    if pixels.ndim == 5:  # the others only fill up the batch
        real = (flat != 0).flatten(1).any(-1).nonzero()[:, 0].cpu()
    if int(canvas.max()) + 1 != len(real):
        raise InputError(
            f"Each of {int(canvas.max()) + 1} canvases of the vision tower must be one of the "
            f"pixel tensor, which has {len(real)}. Use another model, or one image per prompt."
        )
    high, wide = _patch_size(subject, batch)
    mask = torch.zeros(len(flat), 1, *flat.shape[-2:], dtype=torch.bool)
    for index in places.patches[chosen & places.placed].flatten().tolist():
        top, left = int(tokens.row[index]) * high, int(tokens.column[index]) * wide
        mask[real[canvas[index]], :, top : top + high, left : left + wide] = True
    return mask.reshape(*pixels.shape[:-3], 1, *pixels.shape[-2:])


def _packed(subject: Subject, batch: Batch, places: Correspondence, chosen: Tensor) -> Tensor:
    """One row of pixels per patch, in the order in which the processor packed them."""
    count = batch.tensors[PIXELS].shape[0]
    mask = torch.zeros(count, 1, dtype=torch.bool)
    if places.patches.numel() != count:
        raise InputError(
            f"Each of {count} packed patches must belong to an image position, "
            f"{places.patches.numel()} do. Use another model, or images without video."
        )
    vision = getattr(subject.config, "vision_config", None)
    if getattr(vision, "fullatt_block_indexes", None):
        # Qwen2.5 packs the squares of its positions one after the other, but runs them by window.
        mask[:, 0] = chosen.repeat_interleave(places.patches.shape[1])
    else:
        mask[places.patches[chosen].flatten()] = True
    return mask


def _patch_size(subject: Subject, batch: Batch) -> tuple[int, int]:
    """Rows and columns of pixels of a patch."""
    vision = getattr(subject.config, "vision_config", None) or subject.config
    found = getattr(vision, "patch_size", None)
    if isinstance(found, int):
        return found, found
    if isinstance(found, (list, tuple)):
        return int(found[0]), int(found[-1])
    tokens, shape = batch.tokens["vision"], batch.tensors[PIXELS].shape
    return shape[-2] // (int(tokens.row.max()) + 1), shape[-1] // (int(tokens.column.max()) + 1)
