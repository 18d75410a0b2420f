"""What modules return: tensors alone, or in tuples, lists and mappings, with other things."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from probes.operations import tensors_in


class Form:
    """What a module returned, without its first tensor.

    The other tensors are held only while the model holds them, until `settle`: attention weights
    that nobody reads would otherwise be kept for every layer, while a position bias that is
    handed from block to block is needed. In place of one that is gone stands a tensor without
    values, so that whoever should read it after all gets an error from PyTorch.

    Attributes:
        first: the first tensor, where somebody put it back.
    """

    def __init__(self, output: Any) -> None:
        self.first: Tensor | None = None
        self._kind = None if isinstance(output, Tensor) else type(output)
        self._rest = [] if self._kind is None else list(output)[1:]
        self._held: dict[int, weakref.ref[Tensor]] = {}
        for index, item in enumerate(self._rest):
            if isinstance(item, Tensor):
                self._held[index] = weakref.ref(item)
                self._rest[index] = item.new_empty(item.shape, device="meta")

    def settle(self) -> None:
        """Keep for good what is still held by others."""
        for index, reference in self._held.items():
            tensor = reference()
            if tensor is not None:
                self._rest[index] = tensor
        self._held.clear()

    def filled(self, first: Tensor | None = None) -> Any:
        """The module's output with this tensor as the first one."""
        first = self.first if first is None else first
        return first if self._kind is None else self._kind([first, *self._rest])


def first_of(output: Any) -> Tensor | None:
    """The tensor that a module returned, alone or before other things."""
    if type(output) in (tuple, list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of lists, tuples and mappings, with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        made = copy.copy(values)
        for name, value in values.items():
            made[name] = mapped(value, change)
        return made
    if isinstance(values, tuple | list):
        items = [mapped(value, change) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    return values


def differing(made: Any, expected: Any, tolerance: float) -> str:
    """How two outputs differ by more than ``tolerance`` times the largest value, empty if not."""
    pairs = list(tensors_in(made)), list(tensors_in(expected))
    if len(pairs[0]) != len(pairs[1]):
        return f"{len(pairs[0])} tensors instead of {len(pairs[1])}"
    for one, other in zip(*pairs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{list(one.shape)} instead of {list(other.shape)}"
        if one.is_meta or one.device != other.device:
            return "a tensor without values"
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return "other whole numbers"
            continue
        finite = other.isfinite()
        largest = float(other.masked_fill(~finite, 0).abs().max()) if other.numel() else 0.0
        atol = tolerance * max(largest, 1e-30)
        if not torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True):
            worst = float((one - other).masked_fill(~finite, 0).abs().max())
            return f"{worst:.1e} where the largest value is {largest:.1e}"
    return ""


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where PyTorch does not count (inference mode)."""
    return 0 if tensor.is_inference() else tensor._version


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one size are the same numbers in the same order in memory."""
    if one is other:
        return True
    alike = one.dtype == other.dtype and one.device == other.device
    return (
        alike
        and one.data_ptr() == other.data_ptr()
        and one.is_contiguous()
        and other.is_contiguous()
    )


def rowwise(made: Any, one: Any, copies: int) -> Any:
    """The output for ``copies`` copies of a batch, without tensors that have not as many rows.

    Args:
        one: the output for the batch itself.
    """
    if isinstance(made, Tensor) and isinstance(one, Tensor):
        rows = one.shape[:1].numel() * copies if one.ndim else -1
        return made if made.shape[:1] == (rows,) and made.shape[1:] == one.shape[1:] else None
    if isinstance(made, dict) and isinstance(one, dict):
        result = copy.copy(made)
        for name, value in made.items():
            result[name] = rowwise(value, one.get(name), copies)
        return result
    if isinstance(made, tuple | list) and isinstance(one, tuple | list):
        return type(made)([rowwise(*pair, copies) for pair in zip(made, one, strict=True)])
    return None if isinstance(made, Tensor) else made


def pairs(made: Any, one: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors in the same place of two outputs."""
    if isinstance(made, Tensor) and isinstance(one, Tensor):
        yield made, one
    elif isinstance(made, dict) and isinstance(one, dict):
        for name, value in made.items():
            yield from pairs(value, one.get(name))
    elif isinstance(made, tuple | list) and isinstance(one, tuple | list):
        for left, right in zip(made, one, strict=True):
            yield from pairs(left, right)


def repeated(tensor: Tensor, copies: int, axis: int = 0) -> Tensor:
    """The tensor ``copies`` times, one after the other along an axis."""
    if not tensor.ndim:
        return tensor
    return tensor.repeat([copies if index == axis else 1 for index in range(tensor.ndim)])
