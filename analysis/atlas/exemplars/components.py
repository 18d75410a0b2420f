"""Principal components of what each head gives out (z), from sums over the whole data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_NUMBERS = 1 << 21
"""Of z that are held in double precision at a time: 16 MiB."""


@dataclass(frozen=True)
class OutputSums:
    """Sums over queries of z and of its products with itself; those of two parts add up.

    Attributes:
        count: float64 ``[head]``.
        total: float64 ``[head width]``.
        products: float64 ``[head width width]``.
    """

    count: Array
    total: Array
    products: Array

    @classmethod
    def none(cls, heads: int, width: int) -> OutputSums:
        return cls(np.zeros(heads), np.zeros((heads, width)), np.zeros((heads, width, width)))

    @classmethod
    def of(cls, z: Tensor, counted: Tensor) -> OutputSums:
        """The sums of one call.

        Args:
            z: ``[batch head query width]``.
            counted: bool ``[batch head query]``.
        """
        batch, heads, _, width = z.shape
        total = torch.zeros(heads, width, dtype=torch.float64, device=z.device)
        products = torch.zeros(heads, width, width, dtype=torch.float64, device=z.device)
        # Slice by slice: of a long text, z in double precision is larger than all else.
        at_once = max(1, _NUMBERS // (batch * heads * width))
        slices = zip(z.split(at_once, dim=2), counted.split(at_once, dim=2), strict=True)
        for part, mask in slices:
            # Double before the products: float32 sums of products would lose small components.
            kept = part.double().masked_fill(~mask[..., None], 0.0)
            rows = kept.transpose(0, 1).flatten(1, 2)
            total += rows.sum(1)
            products += torch.bmm(rows.transpose(1, 2), rows)
        return cls(
            counted.sum((0, 2)).double().cpu().numpy(),
            total.cpu().numpy(),
            products.cpu().numpy(),
        )

    def __add__(self, other: OutputSums) -> OutputSums:
        return OutputSums(
            self.count + other.count, self.total + other.total, self.products + other.products
        )


@dataclass(frozen=True)
class Components:
    """Principal components of one head's z, largest first.

    Attributes:
        mean: float64 ``[width]``.
        directions: float64 ``[component width]``, orthonormal; the largest entry is positive.
        variances: float64 ``[width]``: of all components, also those not in ``directions``.
        count: queries.
    """

    mean: Array
    directions: Array
    variances: Array
    count: int

    @property
    def explained(self) -> Array:
        """Float64 ``[width]``: share of the variance; 0 where there is none."""
        whole = self.variances.sum()
        return self.variances / whole if whole > 0 else np.zeros_like(self.variances)

    @property
    def effective(self) -> float:
        """How many equally strong components would spread as much: ``1 / sum share^2``."""
        squared = float((self.explained**2).sum())
        return 1 / squared if squared > 0 else float("nan")


def principal_components(sums: OutputSums, head: int, most: int) -> Components | None:
    """The components of a head; None if fewer than two queries were counted."""
    count = float(sums.count[head])
    if count < 2:
        return None
    mean = sums.total[head] / count
    covariance = sums.products[head] / count - np.outer(mean, mean)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1].T[:most]
    largest = np.abs(directions).argmax(1)
    signs = np.sign(directions[np.arange(directions.shape[0]), largest])
    # Rounding leaves variances of 1e-16 of the whole: no component.
    real = variances[: directions.shape[0]] > 1e-12 * max(float(variances.sum()), 1e-300)
    return Components(mean, (directions * signs[:, None])[real], variances, int(count))
