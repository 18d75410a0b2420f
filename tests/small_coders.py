"""Small coders in float64 with nothing at its starting value, and differences of their losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.registry import CODERS

WIDTH, LATENTS, ROWS = 5, 13, 11
OPTIONS: dict[str, dict[str, Any]] = {
    "standard": {"sparsity": 0.3},
    "gated": {"sparsity": 0.3},
    "topk": {"k": 3, "auxiliary": 0.7, "auxiliary_k": 2},
    "batch_topk": {"k": 3, "auxiliary": 0.7, "auxiliary_k": 2},
    "matryoshka": {"k": 3, "auxiliary": 0.7, "auxiliary_k": 2, "group_shares": [0.25, 0.75]},
    "jump_relu": {"sparsity": 0.4, "target": 2.0, "bandwidth": 0.3},
}
KINDS = tuple(OPTIONS)


def small_coder(kind: str, *, seed: int = 0, **options: Any) -> Coder:
    """A coder of 13 latents of 5 entries; biases, scales and thresholds are drawn too."""
    coder = CODERS[kind](WIDTH, LATENTS, seed=seed, **(OPTIONS[kind] | options)).double()
    generator = torch.Generator().manual_seed(seed + 17)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "threshold":
                parameter.copy_(0.3 + 0.4 * drawn.abs())
            elif name == "decoder" and coder.unit_decoder:
                parameter.copy_(drawn / drawn.norm(dim=1, keepdim=True))
            else:
                parameter.copy_(0.5 * drawn)
    return coder


def small_rows(rows: int = ROWS, *, seed: int = 0) -> Tensor:
    """Rows that are not centred."""
    generator = torch.Generator().manual_seed(seed + 99)
    return 1.5 * torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64) + 0.2


def assert_gradients(
    coder: Coder, total: Tensor, value: Callable[[], Tensor], names: set[str] | None = None
) -> None:
    """Gradients of ``total`` are differences of ``value``, along random directions.

    Args:
        value: the loss by another way, of the coder's parameters as they are when it is called.
        names: of the parameters that are compared; None: all.
    """
    parameters = dict(coder.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()))
    generator = torch.Generator().manual_seed(1)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if names is not None and name not in names:
            continue
        for _ in range(3):
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            slope = _slope(parameter, drawn, value)
            assert abs(slope) > 1e-3, f"{name} does not matter here: the test is empty"
            assert abs((gradient * drawn).sum().item() - slope) < 1e-5 * abs(slope) + 1e-7, name


@torch.no_grad()
def _slope(
    parameter: Tensor, direction: Tensor, value: Callable[[], Tensor], step: float = 1e-6
) -> float:
    kept = parameter.clone()
    parameter.copy_(kept + step * direction)
    above = value().item()
    parameter.copy_(kept - step * direction)
    below = value().item()
    parameter.copy_(kept)
    return (above - below) / (2 * step)
