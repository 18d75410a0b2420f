"""Where each tensor of one observed forward came from: a graph of operations without tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from probes import operations as ops
from probes.interception import LARGEST_HEAD_MIX, AttentionMode, FollowedSoftmax, TensorTags


@dataclass(eq=False)
class Node:
    """One result of one operation.

    Attributes:
        kind: ``shape slice join product projection norm softmax attention element weight input``.
        square: for projections: whether the weight mixes a few heads only (talking heads).
    """

    name: str
    kind: str
    parents: tuple[Node, ...] = ()
    path: str = ""
    shape: tuple[int, ...] = ()
    square: bool = False
    serial: int = 0
    note: Any = field(default=None, repr=False)


class Lineage:
    """Keeps a node for every tensor that the mode sees."""

    def __init__(self) -> None:
        self._nodes: TensorTags[Node] = TensorTags()
        self._count = 0

    def of(self, tensor: Tensor) -> Node:
        """The node of a tensor; weights and inputs get theirs when first seen."""
        node = self._nodes.get(tensor)
        if node is None:
            kind = "weight" if ops.is_weight(tensor) else "input"
            node = Node("", kind, shape=tuple(tensor.shape))
            self._nodes.set(tensor, node)
        return node

    def record(self, name: str, args: Any, kwargs: Any, output: Any, path: str) -> None:
        """Note that ``output`` was made from the tensors in ``args`` and ``kwargs``."""
        if name == "__get__" and not isinstance(output, Tensor):
            return
        inputs = [self.of(tensor) for tensor in ops.tensors_in((args, kwargs))]
        results = list(ops.tensors_in(output))
        if name == "__setitem__" and isinstance(args[0], Tensor):
            results = [args[0]]
        if not results:
            return
        self._count += 1
        kind = _kind(name, inputs)
        weights = [node.shape for node in inputs if node.kind == "weight"]
        square = (
            bool(weights)
            and len(set(weights[0][:2])) == 1
            and weights[0][0] <= LARGEST_HEAD_MIX
            and len(inputs[0].shape) >= 4
        )
        for result in results:
            if name in _IN_PLACE_VIEWS and self._nodes.get(result) in inputs:
                continue
            node = Node(name, kind, tuple(inputs), path, tuple(result.shape), square, self._count)
            self._nodes.set(result, node)


_IN_PLACE_VIEWS = frozenset({"requires_grad_", "contiguous", "to", "dropout", "float", "type_as"})


def _kind(name: str, inputs: list[Node]) -> str:
    if inputs and all(node.kind == "weight" for node in inputs) and name not in ops.PROJECTION:
        return "weight"
    for names, kind in (
        (ops.SHAPE, "shape"),
        (ops.SLICE, "slice"),
        (ops.JOIN, "join"),
        (ops.NORM, "norm"),
        (ops.SOFTMAX, "softmax"),
        (ops.PROJECTION, "projection"),
    ):
        if name in names:
            return kind
    if name == ops.ATTENTION:
        return "attention"
    if name in ops.PRODUCT:
        weighted = any(node.kind == "weight" for node in inputs[:2])
        return "projection" if weighted else "product"
    return "element"


LOCAL = ("shape", "slice", "join", "element")


def descends_from_product(node: Node) -> bool:
    """Whether a softmax input comes from a product of two activations (query and key).

    The walk passes shapes, slices, joins, element-wise functions, norms and mixing of heads, and
    no other projection: a softmax over a projected activation is no query-key attention.
    """
    seen: set[int] = set()
    queue = [node]
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.kind == "product":
            return True
        passes = here.kind in (*LOCAL, "norm") or (here.kind == "projection" and here.square)
        if passes:
            queue.extend(here.parents)
    return False


def products_behind(node: Node) -> Iterator[Node]:
    """Products of two activations that a tensor (a pattern) was made from, the nearest first.

    There are several where relative positions are multiplied with the query and added.
    """
    queue, seen = [node], set()
    while queue:
        here = queue.pop(0)
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.kind == "product":
            yield here
        elif here.kind not in ("input", "weight", "attention"):
            queue.extend(here.parents)


def factors_of(product: Node) -> tuple[Node, Node] | None:
    """The two operands of a product; baddbmm has its bias first."""
    operands = [parent for parent in product.parents if parent.kind != "weight"][-2:]
    return (operands[0], operands[1]) if len(operands) == 2 else None


def entering(node: Node, scope: str) -> tuple[list[Node], bool]:
    """What a query or key was projected from, where it entered the module ``scope``.

    Returns the tensors from outside of the module that reach ``node`` through a projection, and
    whether there is any projection between them. Tensors that join later (rotary tables) are left
    out, so that query and key share a source only if both were made from it.
    """
    found: dict[int, Node] = {}
    projected = False
    seen: set[tuple[int, bool]] = set()
    queue = [(node, False)]
    while queue:
        here, after = queue.pop()
        if (id(here), after) in seen:
            continue
        seen.add((id(here), after))
        if not here.parents or not _inside(here.path, scope):
            if after:
                found[id(here)] = here
            continue
        if here.kind == "projection" and not here.square:
            projected = True
            activations = [parent for parent in here.parents if parent.kind != "weight"]
            queue.extend((parent, True) for parent in activations or here.parents[:1])
            continue
        queue.extend((parent, after) for parent in here.parents)
    return list(found.values()), projected


def made_from_one_tensor(ones: list[Node], others: list[Node]) -> bool:
    """Whether two sets of tensors are pieces or poolings of one (chunks, pooled queries)."""
    return bool(_local_ancestors(ones) & _local_ancestors(others))


def _local_ancestors(nodes: list[Node]) -> set[int]:
    found: set[int] = set()
    queue = list(nodes)
    while queue:
        here = queue.pop()
        if id(here) in found or here.kind in ("weight", "input"):
            continue
        found.add(id(here))
        if here.kind in (*LOCAL, "norm"):
            queue.extend(here.parents)
    return found


def split_into_heads(node: Node, heads: int) -> bool:
    """Whether a query was cut into this many heads between its projection and the product."""
    queue, seen = [node], set()
    while queue:
        here = queue.pop()
        if id(here) in seen or not here.parents:
            continue
        seen.add(id(here))
        before, after = here.parents[0].shape, here.shape
        if here.kind == "shape" and before and after:
            if len(after) > len(before) and heads in after[1:]:
                return True
            if before[-1] > after[-1] > 0 and before[-1] % (after[-1] * heads) == 0:
                return True
        if here.kind in LOCAL or here.kind == "norm":
            queue.extend(here.parents)
    return False


def _inside(path: str, scope: str) -> bool:
    return scope == "" or path == scope or path.startswith(f"{scope}.")


def heads_before_repeat(node: Node, heads: int) -> int:
    """Heads of a key before the model repeated them for its query groups."""
    queue, seen = [node], set()
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        grouped = here.name == "expand" and len(here.shape) == 5
        if grouped and here.shape[1] * here.shape[2] == heads:
            return here.shape[1]
        if here.name == "repeat_interleave" and here.parents:
            before = here.parents[0].shape
            if len(before) == 4 and before[1] < heads and heads % before[1] == 0:
                return before[1]
        if here.kind in ("shape", "join"):
            queue.extend(here.parents)
    return heads


class LineageMode(AttentionMode):
    """An attention mode that also records lineage, for one observed forward."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lineage = Lineage()
        self.refused: list[tuple[str, str]] = []

    def on_sdpa(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output = super().on_sdpa(func, args, kwargs)
        self.lineage.record(ops.ATTENTION, args, kwargs, output, self.surroundings().path)
        return output

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        name = ops.name_of(func)
        if name not in (ops.ATTENTION, "multi_head_attention_forward"):
            self.lineage.record(name, args, kwargs or {}, output, self.surroundings().path)
        return output

    def on_other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if ops.name_of(func) in ops.SOFTMAX:
            source = next(ops.tensors_in((args, kwargs)))
            output = func(*args, **kwargs)
            known = descends_from_product(self.lineage.of(source))
            obstacle = "" if known else "a softmax that does not come from query times key"
            if isinstance(output, Tensor) and output.ndim >= 2:
                self.patterns.set(output, self.note_softmax(self.surroundings(), obstacle))
            return output
        return super().on_other(func, args, kwargs)

    def refuse(self, note: FollowedSoftmax, reason: str) -> None:
        self.refused.append((note.path, reason))
