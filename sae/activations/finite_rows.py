"""Rows that hold NaN or an infinity are refused where they arise, by name."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class RowsNotFinite(ValueError):
    """Rows hold NaN or an infinity.

    Attributes:
        site: where they are of.
    """

    def __init__(self, site: str, sentence: str) -> None:
        super().__init__(sentence)
        self.site = site


def refuse_nonfinite(site: str, rows: Float[Tensor, "row width"], where: str) -> None:
    """Nothing, if all rows are finite.

    Args:
        where: which part of the data they are of, such as ``batch 3 of epoch 0``.

    Raises:
        RowsNotFinite: naming the site, the part, and how many rows are bad.
    """
    # A sum of finite numbers may overflow, so it only says where to look closely.
    if torch.isfinite(rows.sum(dtype=torch.float32)):
        return
    bad = int((~rows.isfinite().all(1)).sum())
    if bad:
        raise RowsNotFinite(
            site,
            f"Head outputs of {site} must be finite, got NaN or infinity in {bad} of "
            f"{rows.shape[0]} rows of {where}. Check the model's weights and the data; a model in "
            "float16 may need bfloat16.",
        )
