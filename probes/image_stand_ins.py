"""Pixels that show nothing, of the shape of those that a model was given: one colour, or noise."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.inputs import InputError

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

PIXELS = "pixel_values"
_NOT_QUITE_ZERO = 2.0**-20
"""Idefics and its kin drop canvases that are zero all over, as filling of the batch."""

Block = tuple[slice, int]
"""Rows of the pixel tensor, and the example they belong to."""


def with_other_pixels(subject: Subject, batch: Batch, how: str, seed: int) -> dict[str, Tensor]:
    """The pixel tensors of a batch as a ``blank`` image or as ``noise``; canvases that fill up the
    batch, and pixels that a mask hides, stay zero.

    Blank is the mean colour that the image processor subtracts, so zero after it; where it does
    not normalise, its mean or middle grey. Noise is normal, with the mean and standard deviation
    that each channel has over each example's images.

    Raises:
        InputError: it is not known which pixels belong to which example, or they are no tensor.
    """
    pixels = batch.tensors[PIXELS]
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        raise InputError(
            "Pixels must be one floating tensor to be replaced, got "
            f"{type(pixels).__name__}. Prepare the batch from images of one size."
        )
    if how == "blank":
        new = _blank(subject, pixels)
    else:
        new = torch.empty_like(pixels)
        for rows, example in _blocks(batch, pixels):
            draw = _generator(seed, batch.examples[example].id)
            new[rows] = _noise(pixels[rows], draw, _shape_of(subject, pixels))
    return {PIXELS: torch.where(_shown(batch, pixels), new, torch.zeros_like(new))}


def _shown(batch: Batch, pixels: Tensor) -> Tensor:
    """Bool, broadcastable to the pixels: what is neither a filling canvas nor masked."""
    if pixels.ndim != 5:
        return torch.ones((), dtype=torch.bool, device=pixels.device)
    shown = (pixels != 0).flatten(2).any(-1)[..., None, None, None]
    mask = batch.tensors.get("pixel_attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 4:
        shown = shown & mask.bool().to(pixels.device)[:, :, None]
    return shown


def _blank(subject: Subject, pixels: Tensor) -> Tensor:
    processor = subject.image_processor
    if processor is None or getattr(processor, "do_normalize", None) is not False:
        return torch.full_like(pixels, _NOT_QUITE_ZERO if pixels.ndim == 5 else 0.0)
    colour = torch.as_tensor(getattr(processor, "image_mean", None) or [0.5] * 3).to(pixels)
    if getattr(processor, "do_rescale", True) is False:
        colour = colour * 255
    split, joined = _shape_of(subject, pixels)(pixels)
    axes = [1] * (split.ndim - 2)
    shape = (1, len(colour), *axes) if split.shape[1] == len(colour) else (1, 1, *axes)
    colour = colour if shape[1] > 1 else colour.mean()
    return joined(colour.reshape(shape).expand_as(split))


Splitter = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""Pixels to ``[row channel ...]``, and the way back."""


def _shape_of(subject: Subject, pixels: Tensor) -> Splitter:
    vision = getattr(subject.config, "vision_config", None)
    frames = getattr(vision, "temporal_patch_size", 1) if pixels.ndim == 2 else 1
    frames = frames if isinstance(frames, int) else 1

    def split(part: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if part.ndim >= 4:
            flat = part.reshape(-1, *part.shape[-3:])
            return flat, lambda new: new.reshape(part.shape)
        if part.shape[-1] % (3 * frames):
            return part.reshape(-1, 1, part.shape[-1]), lambda new: new.reshape(part.shape)
        # Qwen packs a patch as [channel frame row column]; a still image repeats its frame.
        still = part.reshape(len(part), 3, frames, -1)
        if frames > 1 and bool((still == still[:, :, :1]).all()):
            shape = still.shape
            return still[:, :, 0], lambda new: new[:, :, None].expand(shape).reshape(part.shape)
        return still.flatten(2), lambda new: new.reshape(part.shape)

    return split


def _noise(pixels: Tensor, draw: torch.Generator, splitter: Splitter) -> Tensor:
    split, joined = splitter(pixels.detach().float().cpu())
    real = (split != 0).flatten(1).any(1)  # canvases that only fill up the batch count for nothing
    seen = split[real] if bool(real.any()) else split
    axes = [0, *range(2, split.ndim)]
    mean, spread = seen.mean(axes, keepdim=True), seen.std(axes, correction=0, keepdim=True)
    drawn = mean + spread * torch.randn(split.shape, generator=draw)
    return joined(drawn).to(pixels)


def _generator(seed: int, example_id: str) -> torch.Generator:
    """Of the seed and the example alone, so that batches do not matter."""
    text = f"{seed}\0{example_id}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(blake2b(text, digest_size=8, person=b"noise").digest(), "little")
    return torch.Generator().manual_seed(number % 2**63)


def _blocks(batch: Batch, pixels: Tensor) -> list[Block]:
    """Which rows of the pixels are whose."""
    owners = _owners(batch, pixels)
    edges = [0, *(i for i in range(1, len(owners)) if owners[i] != owners[i - 1]), len(owners)]
    return [(slice(a, b), owners[a]) for a, b in pairwise(edges)]


def _owners(batch: Batch, pixels: Tensor) -> list[int]:
    """The example of each row of the pixel tensor: an image, a tile, a packed patch, an example."""
    count, images = pixels.shape[0], list(batch.image_examples)
    packed = batch.tensors.get("image_grid_thw")
    if isinstance(packed, Tensor) and pixels.ndim == 2:
        sizes = packed.prod(-1).tolist()
        if sum(sizes) == count and len(images) in (0, len(sizes)):
            whose = images or [i * batch.size // len(sizes) for i in range(len(sizes))]
            return [
                example for example, size in zip(whose, sizes, strict=True) for _ in range(size)
            ]
    if len(images) == count:
        return images
    if count == batch.size and (pixels.ndim == 5 or not images):
        return list(range(count))
    vision = batch.tokens.towers.get("vision")
    if vision is not None and vision.rows == count:
        owners = vision.example[vision.starts[:-1]].tolist()
        if min(owners) >= 0:
            return owners
    raise InputError(
        f"It must be known which of {count} rows of pixels belong to which of {batch.size} examples"
        " to draw their noise, it is not. Use `how='blank'`, or one example per batch."
    )
