"""Lineage with tensors: which linear map every number of one observed forward came from."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from probes import operations as ops
from probes.lineage import Lineage, Node
from probes.weights.head_weights import LinearSource
from probes.weights.linear_runs import PLUS, LinearRun, Moved, Write, moved_before

_MATRIX_PRODUCTS = ("matmul", "__matmul__", "mm")
_TIMES = ("mul", "__mul__", "__rmul__", "mul_", "__imul__", "multiply")
_DIVIDED_BY = ("div", "__truediv__", "div_", "__itruediv__", "true_divide")


class WeightLineage(Lineage):
    """Lineage that also keeps tensors, until it is told to forget them.

    Attributes:
        writers: paths and weights (by address) of the maps whose first addition is noted.
        writes: those additions, by path or address.
    """

    def __init__(self, writers: frozenset[str | int] = frozenset()) -> None:
        super().__init__()
        self.writers = writers
        self.writes: dict[str | int, Write] = {}
        self.norms: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
        self.norm_paths: set[str] = set()
        self._kept: list[Node] = []

    def forget(self) -> None:
        """Let go of all tensors; what comes next stands alone."""
        for node in self._kept:
            node.note = None
        self._kept.clear()

    def record(self, name: str, args: Any, kwargs: Any, output: Any, path: str) -> None:
        if name in PLUS and self.writers:
            self._note_write([t for t in ops.tensors_in(args) if t.is_floating_point()])
        super().record(name, args, kwargs, output, path)
        if name == "__get__" and not isinstance(output, Tensor):
            return
        for result in ops.tensors_in(output):
            node = self.of(result)
            if node.note is None and result.is_floating_point():
                self._keep(node, self._note(name, node, args, kwargs, result, path))

    def left_norm(self, path: str, read: Tensor, output: Tensor) -> None:
        """Note that a norm's module gave out this tensor."""
        node, before = self.of(output), self.of(read).note
        self.norms[node] = path
        self.norm_paths.add(path)
        if not isinstance(before, Moved) or node.note is not None:
            return
        run, *others = before.runs
        if others or run.normed or before.scalings or not _same_shape(run.written, read, output):
            return
        normed = LinearRun(run.source, run.node, run.read, _copy(output), path, run.written)
        self._keep(node, Moved((normed,), normed.written))

    def left_linear(self, path: str, module: nn.Module, read: Tensor, output: Tensor) -> None:
        """Note a linear module whose inside is not a plain linear function (adapters, 4 bits)."""
        node = self.of(output)
        if node.note is None and output.shape[:-1] == read.shape[:-1]:
            source = LinearSource(path, read.shape[-1], module=module)
            run = LinearRun(source, self.of(read), _copy(read), _copy(output))
            self._keep(node, Moved((run,), run.written))

    def norm_before(self, node: Node) -> str:
        """Path of the norm whose output this is, moved at most; empty if there is none."""
        while node not in self.norms:
            if node.kind not in ("shape", "slice") or not node.parents:
                return ""
            node = node.parents[0]
        return self.norms[node]

    def _note_write(self, addends: list[Tensor]) -> None:
        if len(addends) != 2 or not _same_shape(*addends) or addends[0].ndim < 2:
            return
        for added in addends:
            moved, crossed = next(moved_before(self.of(added)), (None, []))
            if moved is None or moved.tensor.numel() != added.numel():
                continue
            source = moved.runs[0].source
            address = None if source.weight is None else source.weight.data_ptr()
            for writer in {source.path, address} & self.writers:
                norm = next((n.path for n in crossed if n.path in self.norm_paths), "")
                factor = None if crossed else moved.factor
                write = Write(moved.runs[0], _copy(added), factor, norm or moved.runs[0].normed)
                self.writes.setdefault(writer, write)

    def _keep(self, node: Node, note: Any) -> None:
        if note is not None:
            node.note = note
            self._kept.append(node)

    def _note(
        self, name: str, node: Node, args: Any, kwargs: Any, result: Tensor, path: str
    ) -> Any:
        if node.kind == "product":
            return [t for t in ops.tensors_in((args, kwargs)) if t.is_floating_point()]
        if node.kind == "projection":
            return self._projected(name, args, kwargs, result, path)
        tensors = [t for t in ops.tensors_in((args, kwargs)) if t.is_floating_point()]
        if not tensors:
            return None
        if node.kind in ("shape", "slice"):
            tensors = tensors[:1]  # others are given for their shape, type or places only
        elif node.kind == "element":
            scaling = _scaling(name, args)
            if scaling is None:
                return None
            before = self.of(tensors[0]).note
            if not isinstance(before, Moved):
                before = _moved_parent(node)
            if before is None:
                return None
            return Moved(before.runs, _copy(result), (*before.scalings, scaling))
        elif node.kind != "join":
            return None
        notes = [self.of(tensor).note for tensor in tensors]
        moved = [note for note in notes if isinstance(note, Moved)]
        if not moved or len(moved) < len(notes) or len({note.scalings for note in moved}) > 1:
            return None
        runs = tuple(dict.fromkeys(run for note in moved for run in note.runs))
        return Moved(runs, _copy(result), moved[0].scalings)

    def _projected(
        self, name: str, args: Any, kwargs: Any, result: Tensor, path: str
    ) -> Moved | None:
        parts = _linear_parts(name, args, kwargs)
        if parts is None or self.of(parts[1]).kind != "weight" or parts[1].ndim != 2:
            return None
        read, weight, bias = parts
        if read.shape[:-1] != result.shape[:-1]:
            return None
        transposed = name != "linear"
        source = LinearSource(path, read.shape[-1], weight, bias, transposed)
        run = LinearRun(source, self.of(read), _copy(read), _copy(result))
        return Moved((run,), run.written)


def _moved_parent(node: Node) -> Moved | None:
    """What was there before an operation in place took its tensor over."""
    notes = [parent.note for parent in node.parents if isinstance(parent.note, Moved)]
    return notes[0] if notes else None


def _linear_parts(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Any] | None:
    """What a linear function read, its weight and bias."""
    if name == "linear":
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        return given["input"], given["weight"], given.get("bias")
    if name == "addmm" and len(args) == 3 and not kwargs:
        bias, read, weight = args
        return read, weight, bias
    if name in _MATRIX_PRODUCTS and len(args) == 2 and not kwargs:
        return args[0], args[1], None
    return None


def _scaling(name: str, args: Any) -> tuple[str, float] | None:
    """The constant that all values are multiplied with or divided by, if that is all."""
    if (name not in _TIMES and name not in _DIVIDED_BY) or len(args) != 2:
        return None
    number = next((arg for arg in args if not isinstance(arg, Tensor)), None)
    if number is None:
        number = next((arg for arg in args[1:] if arg.numel() == 1), None)
    if isinstance(number, bool) or not isinstance(number, int | float | Tensor):
        return None
    return ("div" if name in _DIVIDED_BY else "mul"), float(number)


def _same_shape(*tensors: Tensor) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()
