"""Rows made from a known sparse dictionary, written once and read by every contender."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_ACTIVE = 20
_NOISE = 0.1
_AT_ONCE = 16_384


def write_rows(path: Path, width: int, rows: int, held_out: int, seed: int = 0) -> None:
    """A file of ``rows [row width]`` and ``held_out``, of mean norm √width.

    A row is the sum of 20 of 4 x width random directions, those of low number more often (Zipf),
    with strengths of 0.5 to 1.5, a constant, and a tenth of noise.
    """
    make = torch.Generator().manual_seed(seed)
    features = 4 * width
    directions = torch.randn(features, width, generator=make)
    directions /= directions.norm(dim=1, keepdim=True)
    constant = torch.randn(width, generator=make) / math.sqrt(width)
    often = 1 / torch.arange(10, features + 10).float()
    scale = math.sqrt(width) / math.sqrt(_ACTIVE * (1 + 1 / 12) + 1)

    def some(count: int) -> Tensor:
        parts = []
        for start in range(0, count, _AT_ONCE):
            many = min(_AT_ONCE, count - start)
            which = torch.multinomial(often.expand(many, -1), _ACTIVE, generator=make)
            strengths = torch.rand(many, _ACTIVE, generator=make) + 0.5
            sums = torch.nn.functional.embedding_bag(
                which, directions, mode="sum", per_sample_weights=strengths
            )
            noise = torch.randn(many, width, generator=make) / math.sqrt(width)
            parts.append((sums + constant + _NOISE * math.sqrt(_ACTIVE) * noise) * scale)
        return torch.cat(parts)

    save_file({"rows": some(rows), "held_out": some(held_out)}, path)


def read_rows(path: str | Path, name: str = "rows") -> Tensor:
    """Rows of the file, mapped into memory."""
    with safe_open(str(path), framework="pt") as file:
        return file.get_tensor(name)


def explained_variance(x: Tensor, reconstruction: Tensor) -> float:
    """1 - squared error / variance over rows, in float64."""
    x, reconstruction = x.double(), reconstruction.double()
    left = (x - reconstruction).pow(2).sum()
    return 1 - float(left / (x - x.mean(0)).pow(2).sum())
