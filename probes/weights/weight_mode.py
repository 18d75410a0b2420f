"""What every attention call of an observed forward was given, with the linear maps behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probes import operations as ops
from probes.interception import FollowedSoftmax, Surroundings
from probes.lineage import LineageMode, Node, factors_of, products_behind
from probes.module_stack import ModuleStack
from probes.projections import is_linear
from probes.weights.weight_lineage import WeightLineage


@dataclass(frozen=True)
class Operand:
    """Query, key or value as the model handed it to its attention."""

    node: Node
    tensor: Tensor


@dataclass(frozen=True)
class Operands:
    """What one attention call was given.

    Attributes:
        pairs: query and key, or what may be: every product that the scores were summed from.
    """

    pairs: tuple[tuple[Operand, Operand], ...]
    value: Operand


class WeightMode(LineageMode):
    """Notes what every attention call was given, before a listener hears of the call.

    It has to be entered after the tap's own mode, which stands behind it then.
    """

    def __init__(self, root: nn.Module, forget_at: set[str], writers: frozenset[str | int]) -> None:
        self.stack = ModuleStack(root, None, self._entered, self._left)
        super().__init__(lambda raw, note: None, self._surroundings)
        self.lineage: WeightLineage = WeightLineage(writers)
        self.operands: list[Operands] = []
        self._forget_at = forget_at

    def on_sdpa(
        self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = (
            Operand(self.lineage.of(given[part]), given[part]) for part in ("query", "key", "value")
        )
        self.operands.append(Operands(((query, key),), value))
        output = func(*args, **kwargs)
        self.lineage.record(ops.ATTENTION, args, kwargs, output, self.stack.top)
        return output

    def on_other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if ops.name_of(func) in ops.PRODUCT:
            tensors = list(ops.tensors_in(args))
            met = next((t for t in tensors if self.patterns.get(t) is not None), None)
            others = [t for t in tensors if t is not met]
            if met is not None and others:
                value = Operand(self.lineage.of(others[-1]), others[-1])
                self.operands.append(Operands(tuple(self._pairs(met)), value))
        return super().on_other(func, args, kwargs)

    def on_product(
        self,
        name: str,
        args: tuple[Any, ...],
        output: Tensor,
        pattern: Tensor,
        note: FollowedSoftmax,
        several: bool,
    ) -> Tensor:
        return output

    def _pairs(self, pattern: Tensor) -> Iterator[tuple[Operand, Operand]]:
        for product in products_behind(self.lineage.of(pattern)):
            nodes = factors_of(product)
            if nodes is not None and len(product.note or ()) >= 2:
                query, key = product.note[-2:]  # baddbmm has its bias first
                yield Operand(nodes[0], query), Operand(nodes[1], key)

    def _surroundings(self) -> Surroundings:
        return Surroundings(self.stack.top, run=self.stack.run)

    def _entered(self, path: str, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        if path in self._forget_at:
            self.lineage.forget()
            self.operands.clear()

    def _left(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        written = next(ops.tensors_in(output), None)
        read = next(ops.tensors_in((args, kwargs)), None)
        if written is None or read is None:
            return
        if "norm" in type(module).__name__.lower():
            self.lineage.left_norm(path, read, written)
        elif is_linear(module):
            self.lineage.left_linear(path, module, read, written)
