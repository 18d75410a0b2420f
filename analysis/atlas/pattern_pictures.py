"""Pictures of a few patterns of an atlas, read without the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.atlas_files import DRAW_AGAIN
from analysis.run_files import RunError

PATTERNS = "patterns.safetensors"
STRONGEST = 0.99
"""Cells above this quantile of a picture are as bright as it gets: one cell must not darken all."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Patterns in 8 bits.

    Attributes:
        levels: uint8 ``[picture side side]``, query down, key right: 255 stands for `brightest` and
            more.
        brightest: float ``[picture]``: the weight that the brightest cells stand for.
    """

    levels: NDArray[np.uint8]
    brightest: NDArray[np.float32]


def read_pictures(folder: Path, samples: Sequence[int]) -> Pictures:
    """Pictures of some samples of the atlas in a folder; no other line of its file is read.

    Args:
        samples: lines of the file, column ``sample`` of the table ``points``.

    Raises:
        RunError: the file cannot be read, or has no such line.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / PATTERNS
    try:
        with safe_open(file, "numpy") as opened:
            lines = opened.get_slice("images")
            count, side, _ = lines.get_shape()
            wrong = [sample for sample in samples if not 0 <= sample < count]
            if wrong:
                raise RunError(f"{file} must hold pattern {wrong[0]}, it has {count}. {DRAW_AGAIN}")
            images = [lines[int(sample)] for sample in samples]
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). {DRAW_AGAIN}") from error
    return eight_bits(np.array(images, np.float32).reshape(len(images), side, side))


def eight_bits(images: NDArray[np.floating]) -> Pictures:
    """Pictures ``[picture side side]`` in 8 bits, each from 0 to its own strongest weights.

    >>> made = eight_bits(np.array([[[0.0, 0.5], [0.25, 0.25]]]))
    >>> made.levels.tolist(), f"{made.brightest[0]:.4f}"
    ([[[0, 255], [129, 129]]], '0.4925')
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    if not flat.size:
        return Pictures(np.zeros(images.shape, np.uint8), np.zeros(len(images), np.float32))
    top = np.quantile(flat, STRONGEST, axis=1)
    # Where fewer cells than those above the quantile have any weight, the largest is the brightest.
    top = np.where(top > 0, top, flat.max(1)).astype(np.float32)
    share = flat / np.where(top > 0, top, 1)[:, None]
    levels = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return Pictures(levels.reshape(images.shape), top)


def neighbourhoods(
    x: NDArray[np.floating], y: NDArray[np.floating], most: int = 32
) -> NDArray[np.int64]:
    """Int ``[point]``: points in groups of at most ``most`` that lie together on a map.

    The points are cut in halves across their longer side until the parts are small enough.

    >>> neighbourhoods(np.array([0.0, 9.0, 0.1, 9.1]), np.zeros(4), 2).tolist()
    [0, 1, 0, 1]
    """
    places = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], 1)
    groups = np.zeros(len(places), np.int64)
    waiting, made = [np.arange(len(places))], 0
    while waiting:
        rows = waiting.pop()
        if len(rows) <= most:
            groups[rows] = made
            made += 1
            continue
        axis = int(np.ptp(places[rows], axis=0).argmax())
        ordered = rows[np.argsort(places[rows, axis], kind="stable")]
        waiting += [ordered[len(rows) // 2 :], ordered[: len(rows) // 2]]
    return groups
