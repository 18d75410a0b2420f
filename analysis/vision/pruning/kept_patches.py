"""Which patches each method keeps of a batch's images, for pictures, and how far methods agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from analysis.vision.pruning.selection import (
    SELECTORS,
    Selection,
    first_pruned_layer,
    selector_of,
)
from analysis.vision.seeing import reading_tower, refuse_imageless
from probes.listening import attach

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch
    from probes.subject import Subject

PLACE = ("example", "image", "tile", "row", "column", "left", "top", "right", "bottom")


def kept_patches(
    subject: Subject, batch: Batch, methods: Sequence[str] = tuple(SELECTORS), keep: float = 0.5
) -> pd.DataFrame:
    """What each method keeps at the same budget, from one forward of the batch as it is.

    Args:
        methods: names such as ``faster_vlm`` and ``fastv``; all by default.
        keep: share of the tokens of each image that is kept.

    Returns:
        One line per image position of the language model: ``example`` (its id), ``image``,
        ``tile``, ``row``, ``column`` of the grid that the language model reads, the box ``left``,
        ``top``, ``right``, ``bottom`` in pixels of the original image, and for each method a bool
        column of its name.

    Raises:
        ValueError: a method is unknown or does not fit the model, or a prompt has no image.
    """
    if not 0 < keep <= 1 or not methods:
        raise ValueError(
            "kept_patches must be given methods and a share between 0 and 1 to keep, got "
            f"{list(methods)} and {keep:g}."
        )
    label = "kept_patches"
    tower = reading_tower(subject, label)
    chosen = [selector_of(method) for method in dict.fromkeys(methods)]
    refuse_imageless(batch, tower.name, label)
    selection = Selection(subject, chosen, first_pruned_layer("fastv", None, tower.depth))
    selection.begin(batch, tower.name)
    (listener,) = selection.statistics.listeners
    with attach(subject, listener):
        subject.forward(batch)
    tokens = batch.tokens[tower.name]
    frame = tokens.to_frame()[tokens.has_role("image").numpy()].reset_index(drop=True)
    frame["example"] = [batch.examples[number].id for number in frame["example"]]
    frame = frame[list(PLACE)]
    for selector in chosen:
        frame[selector.name] = selection.kept(selector.name, keep).numpy()
    return frame


def patch_overlap(kept: pd.DataFrame) -> pd.DataFrame:
    """How far methods keep the same patches.

    Args:
        kept: from `kept_patches`, or several of them together.

    Returns:
        One line per pair of methods: ``iou``, the mean over images of what both keep divided by
        what either keeps (0 to 1); ``chance``, about what two random choices of the same sizes
        would give, ``s / (a + b - s)`` with ``s = a b / n``; and the number of ``images``.
    """
    import pandas as pd

    methods = [str(name) for name in kept.columns if name not in PLACE]
    lines = []
    for one, other in combinations(methods, 2):
        shares, chances = [], []
        for _, mine in kept.groupby(["example", "image"], sort=False):
            a, b = mine[one].to_numpy(dtype=bool), mine[other].to_numpy(dtype=bool)
            by_chance = a.sum() * b.sum() / len(mine)
            shares.append((a & b).sum() / (a | b).sum())
            chances.append(by_chance / (a.sum() + b.sum() - by_chance))
        mean = sum(shares) / len(shares), sum(chances) / len(chances)
        lines.append({"method": one, "other": other, "iou": mean[0], "chance": mean[1]})
        lines[-1]["images"] = len(shares)
    return pd.DataFrame(lines, columns=["method", "other", "iou", "chance", "images"])
