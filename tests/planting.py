"""The oracle of the token maps: plant something in an image, see which positions notice.

The layers of the vision tower are silenced, so that every position carries its own patch and
nothing else. Then only the positions that really read the planted pixels change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from probes.tokens import TowerTokens


class _Stop(Exception):
    pass


def silence(blocks: nn.Module) -> None:
    """Every linear layer in the blocks gives out zeros: the residual stream passes unchanged."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def entering(model: nn.Module, module: nn.Module, tensors: dict[str, Any]) -> Tensor:
    """``[position width]``: the hidden states with which the module is called, rows in order."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = kwargs.get("inputs_embeds", kwargs.get("hidden_states"))
        seen.append(args[0] if hidden is None else hidden)
        raise _Stop

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**tensors)
    except _Stop:
        pass
    finally:
        handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).float()


def scene(width: int, height: int, seed: int = 3) -> Image.Image:
    """A dark image without structure."""
    noise = np.random.default_rng(seed).integers(20, 40, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def planted(image: Image.Image, box: list[float]) -> Image.Image:
    """The image with the middle of the box white."""
    left, top, right, bottom = box
    x0, x1 = left + 0.25 * (right - left), right - 0.25 * (right - left)
    y0, y1 = top + 0.25 * (bottom - top), bottom - 0.25 * (bottom - top)
    pixels = np.array(image)
    pixels[round(y0) : max(round(y1), round(y0) + 1), round(x0) : max(round(x1), round(x0) + 1)] = (
        255
    )
    return Image.fromarray(pixels)


def assert_found(
    tokens: TowerTokens,
    images: list[Image.Image],
    enter: Callable[[list[Image.Image]], Tensor],
    *,
    count: int = 6,
    owners: list[tuple[int, int]] | None = None,
    bleed: float = 0.6,
) -> None:
    """A bright patch at the box of a position is noticed by that position and by no stranger.

    Args:
        enter: images to the hidden states of all positions of the tower, rows in order.
        owners: (example, image within the example) of each image; default: one image each.
        bleed: how far resampling may carry light, in sizes of the box.
    """
    owners = owners or [(index, 0) for index in range(len(images))]
    before = enter(images)
    assert len(before) == len(tokens), "the map must have as many positions as the tower runs"
    boxes = tokens.box.tolist()
    placed = (~torch.isnan(tokens.box[:, 0])).nonzero()[:, 0]
    assert len(placed) > 0
    whole = placed[_inner(tokens, placed)]
    chosen = torch.linspace(0, len(whole) - 1, min(count, len(whole))).round().long()
    for position in whole[chosen].tolist():
        owner = (int(tokens.example[position]), int(tokens.image[position]))
        which = owners.index(owner)
        changed = list(images)
        changed[which] = planted(images[which], boxes[position])
        moved = (enter(changed) - before).norm(dim=-1)
        alike = (tokens.tile == tokens.tile[position]) & (tokens.image == tokens.image[position])
        alike &= tokens.example == tokens.example[position]
        assert moved.max() > 1e-6, "no position sees anything"
        assert moved[position] > 0.4 * moved[alike].max(), f"position {position} is blind"
        left, top, right, bottom = boxes[position]
        for other in (moved > 0.3 * moved.max()).nonzero()[:, 0].tolist():
            theirs = (int(tokens.example[other]), int(tokens.image[other]))
            assert theirs == owner, f"position {other} sees what belongs to another image"
            l2, t2, r2, b2 = boxes[other]
            wide = bleed * max(r2 - l2, right - left)
            high = bleed * max(b2 - t2, bottom - top)
            near = l2 < right + wide and r2 > left - wide and t2 < bottom + high and b2 > top - high
            assert near, f"position {other} with box {boxes[other]} sees {boxes[position]}"


def _inner(tokens: TowerTokens, placed: Tensor) -> Tensor:
    """Those whose box is not cut off by padding: at least half as large as the largest."""
    size = (tokens.box[placed, 2:] - tokens.box[placed, :2]).clamp_min(0)
    return (size >= 0.5 * size.amax(0)).all(-1)


def assert_tiles(
    tokens: TowerTokens, image: tuple[int, int], *, covered: float = 1.0, tolerance: float = 1e-3
) -> None:
    """The boxes of each tile do not overlap; together the largest scale covers the image.

    Args:
        image: width and height.
        covered: share of the image that must be covered (less than 1 after a crop).
    """
    width, height = image
    placed = ~torch.isnan(tokens.box[:, 0])
    row_of = torch.arange(tokens.rows).repeat_interleave(tokens.lengths)
    canvas = np.zeros((height, width), dtype=int)
    for key in {(int(r), int(t)) for r, t in zip(row_of[placed], tokens.tile[placed], strict=True)}:
        mine = placed & (row_of == key[0]) & (tokens.tile == key[1])
        boxes = tokens.box[mine].double()
        low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        overlap = (high - low).clamp_min(0).prod(-1)
        overlap.fill_diagonal_(0)
        assert overlap.max() <= tolerance * (boxes[0, 2:] - boxes[0, :2]).prod()
        for left, top, right, bottom in boxes.round().long().tolist():
            canvas[top:bottom, left:right] = 1
    assert canvas.mean() >= covered - 1e-9, f"{canvas.mean():.3f} of the image is covered"
