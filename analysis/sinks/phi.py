"""How much of a token's residual stream lies in the sink dimensions: phi, by arithmetic.

Kang et al., *See What You Are Told: Visual Attention Sink in Large Multimodal Models* (ICLR 2025,
arXiv 2503.03321): ``phi(x) = max over d in D_sink of |x[d]| / RMS(x)``; a token is a sink where phi
exceeds tau = 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

TAU = 20.0
"""The published threshold, for models 4,096 wide."""
TAU_WIDTH = 4096
_EPSILON = 1e-6
"""In the mean square, as the released code has it."""


def phi(x: Tensor, dimensions: Sequence[int]) -> Tensor:
    """Float32 ``[... position]`` of ``x [... position model_width]``: 0 to sqrt(model_width).

    ``phi^2 / model_width`` is the share of the token's energy that lies in one sink dimension.

    >>> phi(torch.tensor([[3.0, 0.0, 0.0, 4.0]]), [0]).tolist()  # RMS is 5 / 2
    [1.199...]
    """
    wide = x.float()
    root = wide.square().mean(-1).add(_EPSILON).sqrt()
    chosen = wide[..., list(dimensions)]
    if not chosen.shape[-1]:
        return torch.zeros_like(root)
    return chosen.abs().amax(-1) / root


def default_tau(width: int) -> float:
    """20, or in narrower models than 4,096 what is the same share of a token's energy, a tenth.

    phi cannot exceed ``sqrt(model_width)``: 20 is out of reach below a width of 400.

    >>> default_tau(5120), round(default_tau(136), 2)
    (20.0, 3.64)
    """
    return TAU * min(1.0, sqrt(width / TAU_WIDTH))


def tau_for(width: int, tau: float | None) -> float:
    """``tau``, or the default for this width.

    Raises:
        ValueError: no token of this width can reach it.
    """
    if tau is None:
        return default_tau(width)
    if not 0 < tau < sqrt(width):
        raise ValueError(
            f"`tau` must lie between 0 and {sqrt(width):.4g}, the most that phi can be in a model "
            f"{width} wide, got {tau:g}. Leave it out for {default_tau(width):.3g}, which is as "
            f"large a share of a token as 20 in a model {TAU_WIDTH} wide."
        )
    return tau
