"""Modality flow over depth: stages, the decay of cross-modal weight, the shift around the image.

Read off a head table that holds `modality_flow` and `text_share`. Values of a layer are means over
its heads, as the papers take them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from analysis.head_table import HeadTable

STAGES = ("T->V", "T->T", "V->V", "V->T")
_FLOW, _SHARE = "modality_flow", "text_share"
_CONVENTION = "T=all"
_SIDES = ("before", "after")


@dataclass(frozen=True)
class OverDepth:
    """How weight flows from layer to layer of one tower.

    Attributes:
        layers: a line per layer: ``layer``, the variants of `modality_flow`, ``text_share`` (P) and
            ``key_share`` (Q, the middle of its interval) for ``T=all``, ``dominance``, the Modality
            Dominance Index of the mean over heads, and ``disparity``, by how much the smaller of
            the weights per text key and per image key lies below the larger, 0 to 1.
        decay: factor per layer of the text's weight on the image, from a straight line through its
            logarithm; below 1 it decays. MODA (Zhang et al., ICML 2025, arXiv 2507.04635) shows
            such a decay and a disparity of modalities in a figure; both numbers here are ours.
        before_after: Pearson's correlation over layers of the weight on prompt text before the
            image and behind it. Wings (Zhang et al., NeurIPS 2024, arXiv 2406.03496): the more
            positive, the less of its text-only skills a model has lost. NaN under 3 layers.
    """

    tower: str
    layers: pd.DataFrame
    decay: float
    before_after: float


def over_depth(heads: HeadTable, tower: str = "language", inputs: str | None = None) -> OverDepth:
    """The layers of a tower, from a head table.

    Raises:
        ValueError: the table does not hold `modality_flow` and `text_share` of this tower.
    """
    import pandas as pd

    for measure in (_FLOW, _SHARE):
        if measure not in heads.select(tower=tower).measures:
            raise ValueError(
                f"The head table must hold {measure!r} of {tower}, it does not. Score a model that "
                f"reads images and text with `--measures {_FLOW},{_SHARE}`."
            )
    columns = {
        variant: _mean(heads, _FLOW, tower, variant, inputs)
        for variant in heads.variants(_FLOW, tower)
    }
    share = _mean(heads, _SHARE, tower, _CONVENTION, inputs)
    ends = [
        _mean(heads, _SHARE, tower, _CONVENTION, inputs, column)
        for column in ("null_low", "null_high")
    ]
    keys = np.mean(ends, axis=0)
    dominance = (share / keys) / ((1 - share) / (1 - keys))
    smaller = np.minimum(dominance, 1 / dominance)
    frame = pd.DataFrame(
        {
            "layer": np.arange(len(share)),
            **columns,
            "text_share": share,
            "key_share": keys,
            "dominance": dominance,
            "disparity": 1 - smaller,
        }
    ).dropna(subset="text_share")
    side = "output" if "output->before" in columns else "after"
    pair = [columns.get(f"{side}->{part}", np.full(len(share), np.nan)) for part in _SIDES]
    return OverDepth(tower, frame.reset_index(drop=True), _factor(columns["T->V"]), _pearson(*pair))


def _mean(
    heads: HeadTable,
    measure: str,
    tower: str,
    variant: str,
    inputs: str | None,
    column: str = "value",
) -> NDArray[np.float64]:
    """Float ``[layer]``: mean over the heads of each layer, NaN where there are none."""
    grid = heads.grid(measure, tower, variant, inputs, column)
    known = np.isfinite(grid)
    counts = known.sum(1)
    total = np.where(known, grid, 0.0).sum(1)
    return np.divide(total, counts, out=np.full(len(grid), np.nan), where=counts > 0)


def _factor(values: NDArray[np.float64]) -> float:
    """By what ``[layer]`` is multiplied from layer to layer."""
    known = np.isfinite(values) & (values > 0)
    if known.sum() < 2:
        return float("nan")
    layer = np.arange(len(values))[known]
    return float(np.exp(np.polyfit(layer, np.log(values[known]), 1)[0]))


def _pearson(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < 3:
        return float("nan")
    a, b = left[known] - left[known].mean(), right[known] - right[known].mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")
