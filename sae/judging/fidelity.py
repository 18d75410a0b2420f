"""How well a coder's reconstructions stand for head outputs, over all rows of some data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.as_activations import as_activations
from sae.coders.coder import Coder
from sae.judging.one_pass import CodedRows, one_pass, sites_of
from sae.reading.latent_reading import wide_dtype

_NO_SPREAD = 1e-20
"""Variance, as a share of the mean square, below which rows count as all the same."""


@dataclass(frozen=True)
class Fidelity:
    """What a coder keeps of the rows it was judged on; x̂ is the reconstruction of x.

    Attributes:
        rows: how many there were.
        l0: mean number of latents that are not 0.
        explained_variance: ``1 - E|x-x̂|² / (E|x|² - |E x|²)`` over all rows together; at most 1,
            negative where the mean row would be better. None where rows do not vary. (A mean of
            this ratio over batches is another, larger number: SAEBench's "legacy" form.)
        explained_variance_by_head: the same of each head's part of the rows.
        cosine: mean cosine of x and x̂, -1 to 1, 0 where x̂ is 0; rows that are 0 are left out.
            None where all are.
        l2_ratio: mean of ``|x̂| / |x|`` over the same rows.
        reconstruction_bias: ``E|x̂|² / E[x·x̂]``: below 1, reconstructions are too short
            (shrinkage), and dividing them by it would make the error least. None where ``E[x·x̂]``
            is not positive.
        squared_error: ``E|x-x̂|²``.
        variance: ``E|x|² - |E x|²``.

    Source: SAEBench (Karvonen et al. 2025); the bias is γ of Rajamanoharan et al. 2024 (arXiv
    2404.16014), section 4.
    """

    rows: int
    l0: float
    explained_variance: float | None
    explained_variance_by_head: tuple[float | None, ...]
    cosine: float | None
    l2_ratio: float | None
    reconstruction_bias: float | None
    squared_error: float
    variance: float

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "explained_variance_by_head": list(self.explained_variance_by_head)}


def judge(coder: Coder, activations: Any, *, site: str | None = None) -> Fidelity:
    """How well a coder reconstructs rows it should not have been trained on.

    One pass; sums are float64 and do not depend on how rows are grouped (up to rounding).

    Args:
        activations: `Activations`, or what `as_activations` makes one of.
        site: which of several sites; by default the one that the coder says it belongs to.

    Raises:
        ValueError: no such site, another width, no rows, or values that are not finite.

    >>> from sae.coders.topk import TopK
    >>> coder = TopK(2, 2, k=2)
    >>> rows = torch.eye(2)
    >>> with torch.no_grad():
    ...     _ = coder.encoder.copy_(torch.eye(2)), coder.decoder.copy_(torch.eye(2))
    >>> judge(coder, rows).explained_variance, judge(coder, rows).l0
    (1.0, 1.0)
    """
    given = None if site is None else {"coder": site}
    return judge_sites({"coder": coder}, activations, sites=given)["coder"]


def judge_sites(
    coders: Mapping[str, Coder], activations: Any, *, sites: Mapping[str, str] | None = None
) -> dict[str, Fidelity]:
    """The same of several coders, of one site or of many, in one pass over the data.

    Args:
        sites: the site of each coder, where its name is not one and it does not say it itself.
    """
    source = as_activations(activations)
    of = sites_of(coders, source, sites)
    sums = {name: FidelitySums(source.heads[of[name]]) for name in coders}
    one_pass(coders, source, {name: [each] for name, each in sums.items()}, of)
    return {name: each.fidelity() for name, each in sums.items()}


class FidelitySums:
    """Sums over rows, of which `fidelity` makes the numbers.

    The variance is kept as sum of squared distances from the mean so far, merged as Chan, Golub
    and LeVeque do (1983): ``E|x|² - |E x|²`` would lose digits where the mean row is long.
    """

    def __init__(self, heads: int = 1) -> None:
        """Nothing was seen yet.

        Args:
            heads: into how many slices of the same width rows are split.
        """
        self.heads = heads
        self._rows, self._known, self._active = 0, 0, 0
        self._mean = self._spread = self._error = torch.zeros(0, dtype=torch.float64)
        self._cosine = self._ratio = self._dot = self._square = self._input = 0.0

    def add(self, coded: CodedRows) -> None:
        """Count a block of rows."""
        wide = wide_dtype(coded.x.device)
        x, made = coded.x.to(wide), coded.reconstruction.to(wide)
        self._merge(x, made)
        self._active += int((coded.strengths != 0).sum())
        dot, square, made_square = (x * made).sum(1), x.pow(2).sum(1), made.pow(2).sum(1)
        self._dot += float(dot.sum())
        self._square += float(made_square.sum())
        self._input += float(square.sum())
        known = square > 0
        length, made_length = square[known].sqrt(), made_square[known].sqrt()
        cosine = dot[known] / (length * made_length)
        self._known += int(known.sum())
        self._cosine += float(torch.where(made_length > 0, cosine, 0.0).sum())
        self._ratio += float((made_length / length).sum())

    def fidelity(self) -> Fidelity:
        """Of all rows so far; at least one."""
        rows, known = self._rows, self._known
        flat = self._spread <= _NO_SPREAD * max(self._input, 1e-300)
        spread = torch.where(flat, 0.0, self._spread)
        by_head = zip(self._by_head(self._error), self._by_head(spread), strict=True)
        error, total = float(self._error.sum()), float(spread.sum())
        return Fidelity(
            rows=rows,
            l0=self._active / rows,
            explained_variance=_explained(error, total),
            explained_variance_by_head=tuple(_explained(*pair) for pair in by_head),
            cosine=self._cosine / known if known else None,
            l2_ratio=self._ratio / known if known else None,
            reconstruction_bias=self._square / self._dot if self._dot > 0 else None,
            squared_error=error / rows,
            variance=total / rows,
        )

    def _merge(self, x: Float[Tensor, "row width"], made: Float[Tensor, "row width"]) -> None:
        count, mean = x.shape[0], x.mean(0)
        # Far from zero, squares of the entries would hide how little rows differ.
        spread = (x - mean).pow(2).sum(0).cpu().double()
        error, mean = (x - made).pow(2).sum(0).cpu().double(), mean.cpu().double()
        if self._rows == 0:
            self._mean, self._spread, self._error = mean, spread, error
        else:
            apart, both = mean - self._mean, self._rows + count
            self._spread = self._spread + spread + apart.pow(2) * (self._rows * count / both)
            self._mean = self._mean + apart * (count / both)
            self._error = self._error + error
        self._rows += count

    def _by_head(self, values: Float[Tensor, " width"]) -> list[float]:
        return values.reshape(self.heads, -1).sum(1).tolist()


def _explained(error: float, spread: float) -> float | None:
    return 1 - error / spread if spread > 0 else None
