"""Norms as linear maps: the scale taken from the values at hand, so that parts add up.

A norm that a model writes out (``x * rsqrt(mean(x ** 2) + eps)``) needs nothing here: its power
and root are cut from the graph like every other nonlinear function, which leaves ``x`` times a
number. These are the norms that come as one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "normalize": ("input", "p", "dim", "eps"),
}
FROZEN_NORMS = frozenset(_SIGNATURES)
"""Functions that `frozen_norm` knows."""


def frozen_norm(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], own: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The norm's own output, differentiable as if its scale were a number, and its bias.

    Args:
        name: ``layer_norm``, ``rms_norm`` or ``normalize`` (division by the norm).
        own: what the function itself gave; the values of the result are exactly these.

    >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> own = torch.nn.functional.normalize(x, dim=-1).detach()
    >>> unit, _ = frozen_norm("normalize", (x,), {"dim": -1}, own)
    >>> torch.autograd.grad(unit.sum(), x)[0]
    tensor([[0.2000, 0.2000]])
    """
    given: dict[str, Any] = dict(zip(_SIGNATURES[name], args, strict=False)) | dict(kwargs)
    x: Tensor = given["input"]
    wide = x.double() if x.dtype == torch.float64 else x.float()
    bias = given.get("bias")
    if name == "normalize":
        with torch.no_grad():
            order, dim = given.get("p", 2.0), given.get("dim", 1)
            size = wide.norm(order, dim, keepdim=True).clamp_min(given.get("eps", 1e-12))
        linear = wide / size
    else:
        axes = list(range(-len(_shape(given["normalized_shape"])), 0))
        centred = wide - wide.mean(axes, keepdim=True) if name == "layer_norm" else wide
        with torch.no_grad():
            epsilon = given.get("eps", 1e-5 if name == "layer_norm" else None)
            epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
            scale = (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
        linear = centred * scale
        if given.get("weight") is not None:
            linear = linear * given["weight"].detach().to(wide.dtype)
    linear = linear.to(own.dtype)
    return own.detach() + (linear - linear.detach()), bias


def _shape(shape: Any) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
