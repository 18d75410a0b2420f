"""Examples and batches: what a subject is run on, and how an image file is opened safely."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 100 megapixels are 300 MB as RGB."""


class InputError(ValueError):
    """The user's data cannot be used; the message is one or two plain sentences.

    Attributes:
        example_id: id of the example that is at fault, if it is one: a caller may skip it.
    """

    def __init__(self, message: str, example_id: str | None = None) -> None:
        super().__init__(message)
        self.example_id = example_id


@dataclass(frozen=True)
class Example:
    """One input: a text, one or more images, a question with its answer, and what is known of it.

    Attributes:
        id: stable name of the example; bootstrap weights are keyed by it.
        image: path, PIL image, or array ``[row column channel]``; `images` if there are several.
        answer: what the model should say; appended to the prompt (teacher forcing).
        objects: names of the objects that are really there.
        boxes: one ``(left, top, right, bottom)`` in pixels for each object.
        label: class of the example, as index or word.
        corrupt: the other half of a pair: the same input with one thing changed, a text or (where
            the example has an image) an image.
        correct, wrong: what the answer is and what it becomes when corrupted: words, or classes as
            index or word.
        extra: every other field of the data.
        digest: blake2b of the content, empty if it was not read from a file.
    """

    id: str
    text: str | None = None
    image: Any = None
    images: tuple[Any, ...] = ()
    question: str | None = None
    answer: str | None = None
    objects: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    label: int | str | None = None
    corrupt: Any = None
    correct: int | str | None = None
    wrong: int | str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def pictures(self) -> tuple[Any, ...]:
        """All images of the example, whether given as `image` or as `images`."""
        return self.images if self.images else () if self.image is None else (self.image,)

    @property
    def prompt(self) -> str | None:
        """What is asked: the text if there is one, else the question."""
        return self.text if self.text is not None else self.question


@dataclass(frozen=True)
class Batch:
    """What one forward is called with, and what each position of it is.

    Attributes:
        tensors: keyword arguments of the model's forward.
        image_sizes: (width, height) of each original image, in the order of the processor.
        image_examples: index of the example that each image belongs to.
        answer_starts: per example, index of the first answer token in ``input_ids`` (padding
            included), -1 where no answer was given.
    """

    tensors: dict[str, Any]
    tokens: TokenMap
    examples: tuple[Example, ...]
    answer_starts: tuple[int, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()
    image_examples: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """The batch on a device; ``dtype`` changes floating tensors (pixels) only."""
        return replace(
            self, tensors={name: _moved(value, device, dtype) for name, value in self._items()}
        )

    def _items(self) -> list[tuple[str, Any]]:
        return list(self.tensors.items())


def open_image(image: Any, name: str = "") -> Image:
    """An RGB image, upright, from a path, bytes, a PIL image, or an array.

    Transparent pixels become white, 16-bit greys are scaled to 8 bits, the EXIF orientation is
    applied. Arrays are ``[row column]``, ``[row column channel]`` or ``[channel row column]``;
    floats must lie in 0 to 1.

    Raises:
        InputError: the file is missing, does not decode, or has more than `MOST_PIXELS`.
    """
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path, bytes)):
        raw = isinstance(image, bytes)
        name = name or ("image" if raw else str(image))
        try:
            opened = Image.open(io.BytesIO(image) if raw else image)
        except FileNotFoundError as error:
            raise InputError(f"Image {name!r} does not exist. Check the path.") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _not_decoded(name, error) from error
        with opened:
            _refuse_huge(opened, name)
            try:
                return _as_rgb(ImageOps.exif_transpose(opened))
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise _not_decoded(name, error) from error
    if isinstance(image, Image.Image):
        _refuse_huge(image, name or "image")
        return _as_rgb(ImageOps.exif_transpose(image))
    return _as_rgb(Image.fromarray(_eight_bit(image, name or "image")))


def _not_decoded(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"Image {name!r} does not decode ({reason}). Remove it from the data or save it again."
    )


def _refuse_huge(image: Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(
            f"Image {name!r} must have at most {MOST_PIXELS:,} pixels, got {width} x {height}. "
            "Make it smaller."
        )


def _as_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "RGB":
        image.load()
        return image.copy() if getattr(image, "fp", None) else image
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F":
            values = values * (255 if values.max(initial=0) <= 1 else 1)
        elif values.max(initial=0) > 255:
            values = values / 257  # 65535 becomes 255
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Any, name: str) -> Any:
    import numpy as np

    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f"{name} must be a path, a PIL image, or an array [row column channel], got "
            f"{type(image).__name__} of shape {list(array.shape)}. Pass one of those."
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1:
            raise InputError(
                f"A floating {name} must lie in 0 to 1, got {array.min():g} to {array.max():g}. "
                "Divide by 255, or pass the model's own tensors with `pixel_values=`."
            )
        return (array * 255).round().astype(np.uint8)
    if array.min(initial=0) < 0 or array.max(initial=0) > 255:
        raise InputError(
            f"An integer {name} must lie in 0 to 255, got {array.min()} to {array.max()}. Scale it."
        )
    return array.astype(np.uint8)


def _moved(value: Any, device: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device, dtype) for item in value)
    return value
