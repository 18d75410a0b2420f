"""Which torch functions are linear in a tensor, and what they add to it that is not it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probes import operations as ops

HOMOGENEOUS = (
    (ops.SHAPE - {"detach", "requires_grad_"})
    | ops.SLICE
    | frozenset(
        "neg negative __neg__ sum mean cumsum avg_pool1d avg_pool2d adaptive_avg_pool1d "
        "adaptive_avg_pool2d interpolate upsample tril triu pixel_shuffle pixel_unshuffle fold "
        "unfold as_strided repeat repeat_interleave broadcast_to".split()
    )
)
"""Linear in their first tensor and adding nothing to it."""

ARITHMETIC = frozenset(
    "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ rsub subtract".split()
)
ADDITIVE = (
    ARITHMETIC
    | (ops.JOIN - {"repeat", "repeat_interleave"})
    | frozenset(
        "where masked_fill masked_fill_ masked_scatter masked_scatter_ index_add index_add_ "
        "index_put index_put_ __setitem__ index_copy index_copy_ scatter_add scatter_add_ copy_ "
        "pad batch_norm".split()
    )
)
"""Linear in all tensors that lie on the path together, plus what the other operands add."""

MULTIPLIED = frozenset("mul __mul__ __rmul__ __imul__ mul_ multiply".split())
DIVIDED = frozenset("div __truediv__ __itruediv__ div_ true_divide divide".split())
CONTRACTED = frozenset(
    "linear addmm mm matmul __matmul__ __rmatmul__ bmm einsum tensordot inner mv dot vecdot "
    "conv1d conv2d conv3d".split()
)
"""Sums of products: linear in one operand where the others are numbers."""

FRESH = frozenset(
    "zeros_like ones_like empty_like full_like randn_like rand_like new_zeros new_ones new_empty "
    "new_full new_tensor detach".split()
)
"""Made in the likeness of a tensor; its values are not used."""

_IN_PLACE = frozenset("__iadd__ __isub__ __imul__ __itruediv__ __ipow__ __setitem__".split())
_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def works_in_place(name: str) -> bool:
    """Whether a function of this name changes its first argument.

    >>> works_in_place("add_"), works_in_place("__iadd__"), works_in_place("__add__")
    (True, True, False)
    """
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments with each tensor changed; lists, tuples and dicts opened."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        made = [mapped(item, change) for item in value]
        return tuple(made) if isinstance(value, tuple) else made
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    return value


def added_operands(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], on_path: Callable[[Any], bool]
) -> list[Any]:
    """The operands of an additive function that are not on the path: tensors, numbers but 0."""
    found: list[Any] = []
    for tensor in ops.tensors_in((args, dict(kwargs))):
        if tensor.is_floating_point() and not on_path(tensor):
            found.append(tensor)
    numbers = name in ARITHMETIC or name in ("where", "masked_fill", "masked_fill_", "__setitem__")
    if numbers:
        given = [*args, kwargs.get("value"), kwargs.get("other")]
        found += [n for n in given if isinstance(n, int | float) and n != 0]
    if name == "pad":
        found += [n for n in [*args[3:4], kwargs.get("value")] if n]
    return found


def bias_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a contraction adds, broadcastable to its output."""
    if name == "addmm":
        return kwargs.get("beta", 1) * (args[0] if args else kwargs["input"])
    bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
    if name not in ("linear", *_CONVOLUTIONS) or not isinstance(bias, Tensor):
        return None
    return bias.reshape(-1, *[1] * _CONVOLUTIONS.get(name, 0))


def is_constant(operand: Any) -> bool:
    """Whether an operand is a number or a weight, the same for every input."""
    return isinstance(operand, nn.Parameter | int | float)


def product(gradient: Tensor, values: Tensor) -> Tensor:
    """Gradient times values, 0 where the gradient is: minus infinity may stand where none reads."""
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    values = values.to(wide.device, wide.dtype)
    return torch.where(wide == 0, torch.zeros_like(wide), wide * values)
