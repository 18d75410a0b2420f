"""On which patches of their pictures saved examples fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae.feature_index.form import TOKENS
from sae.feature_index.reading import FeatureIndex, IndexedExample

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FiredPatch:
    """A patch where a latent fires.

    Attributes:
        box: left, top, right, bottom as shares of the picture, 0 to 1.
        here: whether it is the example's own position.
    """

    row: int
    column: int
    box: tuple[float, float, float, float]
    strength: float
    here: bool


def fired_patches(
    index: FeatureIndex, examples: Sequence[IndexedExample]
) -> list[list[FiredPatch]]:
    """For each example, the patches of its own picture and tile where its latent fires.

    Empty for examples that are no patch, or whose input is not kept with its pictures.

    Raises:
        RunError: the index cannot be read.
    """
    tower = index.site.rpartition(".")[0]
    placed = [one for one in examples if one.patch is not None and one.number >= 0]
    numbers = sorted({one.number for one in placed})
    if not numbers:
        return [[] for _ in examples]
    frame = index.lines_of(TOKENS, [("number", "in", numbers), ("tower", "==", tower)])
    by_input = {number: lines.sort_values("position") for number, lines in frame.groupby("number")}
    return [
        _patches(index, one, by_input.get(one.number)) if one in placed else [] for one in examples
    ]


def _patches(
    index: FeatureIndex, one: IndexedExample, lines: pd.DataFrame | None
) -> list[FiredPatch]:
    pictures = index.inputs[one.number].pictures if one.number < len(index.inputs) else ()
    assert one.patch is not None
    image, tile, _, _ = one.patch
    if lines is None or not 0 <= image < len(pictures):
        return []
    _, width, height = pictures[image]
    strengths = dict(one.fired)
    mine = lines[
        lines["position"].isin(list(strengths))
        & (lines["image"] == image)
        & (lines["tile"] == tile)
    ]
    found = []
    for line in mine.to_dict("records"):
        box = np.array([line[edge] for edge in ("left", "top", "right", "bottom")], dtype=float)
        if not np.isfinite(box).all() or line["row"] < 0:
            continue
        shares = box / (width, height, width, height)
        position = int(line["position"])
        found.append(
            FiredPatch(
                int(line["row"]),
                int(line["column"]),
                (float(shares[0]), float(shares[1]), float(shares[2]), float(shares[3])),
                strengths[position],
                position == one.position,
            )
        )
    return found
