"""How an image processor lays the original image on the canvas that the model sees.

The standard pipeline (resize, center crop, pad) of transformers or torchvision is computed from
the processor's settings. Any other processor is asked: it processes test cards of the same size,
a black one, a white one and two ramps, and a straight line through what comes back says where
each canvas pixel comes from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probes.tokens.patches import Placement

_POINTWISE = (
    "ToTensor",
    "MaybeToTensor",
    "PILToTensor",
    "MaybePILToTensor",
    "ToImage",
    "ToDtype",
    "ConvertImageDtype",
    "Normalize",
)
"""Steps of a torchvision pipeline that move no pixel."""


def placement_of(processor: Any, width: int, height: int, canvas: Tensor) -> Placement | None:
    """The placement of an image of ``width`` x ``height`` on ``canvas [..., row, column]``.

    Args:
        processor: the image processor that made the canvas, or ``None``: then the image is taken
            to have been the canvas itself if it has its size.

    Returns:
        ``None`` where it cannot be known.
    """
    rows, columns = canvas.shape[-2:]
    if processor is None:
        return Placement(width, height) if (columns, rows) == (width, height) else None
    placed = _from_settings(processor, width, height, rows, columns)
    placed = placed or _from_transforms(processor, width, height, rows, columns)
    return placed or _from_test_cards(processor, width, height, rows, columns)


def _from_settings(
    processor: Any, width: int, height: int, rows: int, columns: int
) -> Placement | None:
    if not _is_standard(processor):
        return None
    left, top, full_width, full_height = 0.0, 0.0, width, height
    if _has_own_square_padding(processor) and processor.do_pad:
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)
        full_width = full_height = side
    wide, high = full_width, full_height
    if getattr(processor, "do_resize", False):
        resized = _resized(processor, full_width, full_height)
        if resized is None:
            return None
        wide, high = resized
    scale_x, scale_y = full_width / wide, full_height / high
    placed = Placement(width, height, left, top, scale_x, scale_y)
    if getattr(processor, "do_center_crop", False):
        crop = processor.crop_size
        pil = any(base.__name__ == "PilBackend" for base in type(processor).__mro__)
        placed = placed.window(_cut(wide, crop["width"], pil), _cut(high, crop["height"], pil))
        wide, high = crop["width"], crop["height"]
    # Padding of a batch to its largest image goes to the right and the bottom: nothing moves.
    return placed if wide <= columns and high <= rows else None


def _cut(size: int, crop: int, pil: bool) -> int:
    # What is too small is padded; the two back ends round an odd padding differently.
    return (size - crop) // 2 if size >= crop or pil else -((crop - size) // 2)


def _is_standard(processor: Any) -> bool:
    kind = type(processor)
    if not any(base.__name__ in ("PilBackend", "TorchvisionBackend") for base in kind.__mro__):
        return False
    return _has_own_square_padding(processor) or all(
        _inherited(kind, name) for name in ("_preprocess", "resize", "center_crop", "preprocess")
    )


def _inherited(kind: type, name: str) -> bool:
    for base in kind.__mro__:
        if name in vars(base):
            return base.__module__.endswith(("image_processing_backends", "image_processing_utils"))
    return True


def _has_own_square_padding(processor: Any) -> bool:
    return type(processor).__name__ in ("LlavaImageProcessor", "LlavaImageProcessorPil")


def _resized(processor: Any, width: int, height: int) -> tuple[int, int] | None:
    size = processor.size
    size = {key: size.get(key) for key in ("height", "width", "shortest_edge", "longest_edge")}
    if size["height"] and size["width"]:
        return size["width"], size["height"]
    shortest, longest = size["shortest_edge"], size["longest_edge"]
    if not shortest:
        return None
    if longest:
        from transformers.image_transforms import get_size_with_aspect_ratio

        high, wide = get_size_with_aspect_ratio((height, width), shortest, longest)
        return wide, high
    return _short_side(width, height, shortest)


def _from_transforms(
    processor: Any, width: int, height: int, rows: int, columns: int
) -> Placement | None:
    """A torchvision pipeline that resizes and crops, such as timm's."""
    steps = getattr(getattr(processor, "transform", None), "transforms", None)
    if not steps:
        return None
    wide, high = width, height
    placed = Placement(width, height)
    for step in steps:
        name = type(step).__name__
        size: Any = getattr(step, "size", None)
        if name == "Resize" and getattr(step, "max_size", None) is None:
            size = size if isinstance(size, (list, tuple)) else [size]
            pair = len(size) == 2
            new = (int(size[1]), int(size[0])) if pair else _short_side(wide, high, int(size[0]))
            scales = placed.scale_x * wide / new[0], placed.scale_y * high / new[1]
            placed = Placement(width, height, placed.left, placed.top, *scales)
            wide, high = new
        elif name == "CenterCrop":
            crop_high, crop_wide = (size, size) if isinstance(size, int) else map(int, size)
            placed = placed.window(_center(wide, crop_wide), _center(high, crop_high))
            wide, high = crop_wide, crop_high
        elif name not in _POINTWISE:
            return None
    return placed if (wide, high) == (columns, rows) else None


def _center(size: int, crop: int) -> int:
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _short_side(width: int, height: int, short: int) -> tuple[int, int]:
    far = int(short * max(width, height) / min(width, height))
    return (short, far) if width <= height else (far, short)


def _from_test_cards(
    processor: Any, width: int, height: int, rows: int, columns: int
) -> Placement | None:
    import numpy as np
    from PIL import Image

    def seen(card: np.ndarray) -> Tensor | None:
        image = Image.fromarray(np.stack([card] * 3, axis=-1))
        try:
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        except (TypeError, KeyError, ValueError, IndexError):
            return None
        if not isinstance(pixels, Tensor) or pixels.shape[-2:] != (rows, columns):
            return None
        return pixels.reshape(-1, rows, columns)[0].double()

    ramp_x = np.linspace(0, 255, width).round().astype(np.uint8)[None].repeat(height, axis=0)
    ramp_y = np.linspace(0, 255, height).round().astype(np.uint8)[:, None].repeat(width, axis=1)
    black, white = seen(np.zeros_like(ramp_x)), seen(np.full_like(ramp_x, 255))
    across, down = seen(ramp_x), seen(ramp_y)
    if black is None or white is None or across is None or down is None:
        return None
    gain = white - black
    image = gain.abs() > 0.5 * gain.abs().max()
    if not image.any():
        return None
    share_x = torch.where(image, (across - black) / gain, torch.nan)
    share_y = torch.where(image, (down - black) / gain, torch.nan)
    line_x = _line(share_x.nanmean(0), width)
    line_y = _line(share_y.nanmean(1), height)
    if line_x is None or line_y is None:
        return None
    return Placement(width, height, line_x[0], line_y[0], line_x[1], line_y[1])


def _line(share: Tensor, size: int) -> tuple[float, float] | None:
    """Offset and scale of the straight line from canvas pixel edges to pixels of the original."""
    if size == 1:
        return None
    # Resampling bends the ends of the ramp; the middle of the known part is straight.
    known = torch.isfinite(share) & (share > 0.02) & (share < 0.98)
    if int(known.sum()) < 3:
        return None
    center = torch.arange(share.numel(), dtype=torch.float64)[known] + 0.5
    original = share[known] * (size - 1) + 0.5
    design = torch.stack([torch.ones_like(center), center], dim=-1)
    solution = torch.linalg.lstsq(design, original[:, None]).solution[:, 0]
    worst = (design @ solution - original).abs().amax()
    if worst > max(2.0, 0.02 * size):
        return None
    return float(solution[0]), float(solution[1])
