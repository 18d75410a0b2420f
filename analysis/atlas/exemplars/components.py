"""Principal components of what each head gives out (z), from sums over the whole data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


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
        # Double before the products: float32 sums of products would lose small components.
        kept = z.double().masked_fill(~counted[..., None], 0.0)
        rows = kept.transpose(0, 1).flatten(1, 2)
        return cls(
            counted.double().sum((0, 2)).cpu().numpy(),
            rows.sum(1).cpu().numpy(),
            torch.bmm(rows.transpose(1, 2), rows).cpu().numpy(),
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
