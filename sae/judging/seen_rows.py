"""What baselines are fitted on: mean and covariance of rows, and a random sample of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.as_activations import as_activations
from sae.activations.epoch_order import keyed_generator
from sae.reading.latent_reading import wide_dtype

SAMPLE = 4_096


@dataclass(frozen=True)
class SeenRows:
    """One pass over the rows of a site.

    Attributes:
        rows: how many there were.
        mean: float64.
        covariance: float64, over all rows (divided by their number).
        sample: float32, drawn without replacement, every row with the same chance.
    """

    rows: int
    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"] = field(repr=False)
    sample: Float[Tensor, "drawn width"] = field(repr=False)


def seen_rows(
    activations: Any,
    sites: Iterable[str] | None = None,
    *,
    sample: int = SAMPLE,
    most: int | None = None,
    seed: int = 0,
) -> dict[str, SeenRows]:
    """Look at the rows of some sites (epoch 0), in one pass.

    Memory: two matrices ``[width width]`` in float64 and the sample, for each site.

    Args:
        sites: all of the source's by default.
        sample: rows that are drawn.
        most: stop after the chunk with which every site has so many rows; None: look at all.

    Raises:
        ValueError: no such site, or a site without rows.
    """
    source = as_activations(activations)
    chosen = list(source.widths if sites is None else sites)
    unknown = next((site for site in chosen if site not in source.widths), None)
    if unknown is not None:
        raise ValueError(
            f"The site must be one of {', '.join(source.widths)}, got {unknown!r}. Choose one."
        )
    sums = {site: _Sums(source.widths[site], site, sample, seed) for site in chosen}
    for chunk in source.chunks(0):
        for site, each in sums.items():
            if site in chunk and chunk[site].shape[0]:
                each.add(chunk[site].detach())
        if most is not None and all(each.rows >= most for each in sums.values()):
            break
    return {site: each.seen() for site, each in sums.items()}


class _Sums:
    def __init__(self, width: int, site: str, sample: int, seed: int) -> None:
        self._site, self._size, self.rows = site, sample, 0
        self._generator = keyed_generator(seed, site, "sample")
        self._start: Tensor | None = None
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)
        self._keys, self._sample = torch.zeros(0), torch.zeros(0, width)

    def add(self, rows: Float[Tensor, "row width"]) -> None:
        wide = rows.to(wide_dtype(rows.device))
        if self._start is None:
            self._start = wide.mean(0)
        # About the first mean: squares of far rows would hide how little they differ.
        wide = wide - self._start
        self._sum += wide.sum(0).cpu()
        self._products += (wide.T @ wide).cpu()
        self.rows += rows.shape[0]
        # The rows with the largest of independent keys are a sample without replacement.
        keys = torch.rand(rows.shape[0], generator=self._generator)
        best, which = keys.topk(min(self._size, keys.numel()))
        self._keys = torch.cat([self._keys, best])
        self._sample = torch.cat([self._sample, rows[which.to(rows.device)].float().cpu()])
        if self._keys.numel() > self._size:
            self._keys, which = self._keys.topk(self._size)
            self._sample = self._sample[which]

    def seen(self) -> SeenRows:
        if self._start is None:
            raise ValueError(
                f"{self._site} must have at least one row, the data gave none. Give more data."
            )
        apart = self._sum / self.rows
        covariance = self._products / self.rows - torch.outer(apart, apart)
        return SeenRows(self.rows, self._start.cpu() + apart, covariance, self._sample)
