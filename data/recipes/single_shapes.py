"""Single-object images for shapes-vit: rendered shapes, and the digits scikit-learn ships."""

import numpy as np
import scenes
from PIL import Image
from sklearn.datasets import load_digits

SIDE_PIXELS = 32
SHAPE_PIXELS = (10, 18)  # smallest and largest side of a shape
LABELS = (*scenes.SHAPES, *(str(digit) for digit in range(10)))
HELD_OUT_DIGITS = 300
MASKS = {
    (shape, pixels): scenes.draw_shape(shape, pixels)
    for shape in scenes.SHAPES
    for pixels in range(SHAPE_PIXELS[0], SHAPE_PIXELS[1] + 1)
}


def draw_single(
    rng: np.random.Generator, shape: int | None = None
) -> tuple[np.ndarray, int, list[int]]:
    """([32, 32, 3] uint8, label, [left, top, right, bottom]): a shape anywhere, on clutter.

    A given shape stands for the one that is drawn; nothing else of the image depends on it.
    """
    drawn = int(rng.integers(len(scenes.SHAPES)))
    label = drawn if shape is None else shape
    pixels = int(rng.integers(SHAPE_PIXELS[0], SHAPE_PIXELS[1] + 1))
    left, top = rng.integers(0, SIDE_PIXELS - pixels + 1, size=2).tolist()
    image = np.full((SIDE_PIXELS, SIDE_PIXELS, 3), rng.uniform(40, 120), dtype=np.float32)
    for _ in range(int(rng.integers(0, 6))):  # clutter: small rectangles, any grey
        x, y, width, height = rng.integers((0, 0, 2, 2), (28, 28, 6, 6)).tolist()
        image[y : y + height, x : x + width] = rng.uniform(20, 160)
    colours = list(scenes.COLOURS.values())
    colour = np.array(colours[rng.integers(len(colours))])
    cover = rng.uniform(0.6, 1.0) * MASKS[scenes.SHAPES[label], pixels][:, :, None]
    patch = image[top : top + pixels, left : left + pixels]
    image[top : top + pixels, left : left + pixels] = patch * (1 - cover) + colour * cover
    image += rng.normal(0, 4.0, size=(SIDE_PIXELS, SIDE_PIXELS, 1))
    box = [left, top, left + pixels, top + pixels]
    return image.round().clip(0, 255).astype(np.uint8), label, box


def digit_pixels(digit: np.ndarray, side: int = SIDE_PIXELS) -> np.ndarray:
    """[side, side, 3] uint8 from scikit-learn's [8, 8] with values 0 to 16."""
    small = Image.fromarray((digit * (255 / 16)).round().astype(np.uint8))
    grey = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    return np.repeat(grey[:, :, None], 3, axis=2)


def digit_split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((images, digits) to train on, the same held out): [n, 8, 8] in 0 to 16, and 0 to 9."""
    bunch = load_digits()
    order = np.random.default_rng(11).permutation(len(bunch.images))
    held_out, train = order[:HELD_OUT_DIGITS], order[HELD_OUT_DIGITS:]
    return (bunch.images[train], bunch.target[train]), (
        bunch.images[held_out],
        bunch.target[held_out],
    )


def draw_digit(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit as a training image: 24 to 32 pixels, anywhere, stroke brightness varied."""
    side = int(rng.integers(24, SIDE_PIXELS + 1))
    left, top = rng.integers(0, SIDE_PIXELS - side + 1, size=2).tolist()
    image = np.zeros((SIDE_PIXELS, SIDE_PIXELS, 3), dtype=np.float32)
    image[top : top + side, left : left + side] = digit_pixels(digit, side)
    image = image * rng.uniform(0.6, 1.0) + rng.normal(0, 4.0, size=(SIDE_PIXELS, SIDE_PIXELS, 1))
    return image.round().clip(0, 255).astype(np.uint8)
