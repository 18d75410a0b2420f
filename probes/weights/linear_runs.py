"""Linear maps as they ran, the tensors that are their outputs, and the ways back to them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from probes.lineage import LOCAL, Node
from probes.weights.head_weights import LinearSource

PLUS = ("add", "__add__", "__radd__", "__iadd__", "add_")
"""Functions that add two tensors."""


@dataclass(eq=False)
class LinearRun:
    """One linear map as it ran.

    Attributes:
        node: lineage of what it read.
        read, written: its input ``[... in]`` and output ``[... out]``, copied.
        normed: path of a norm over the whole output (not head by head), whose output ``written``
            then is; ``before_norm`` is what it read.
    """

    source: LinearSource
    node: Node
    read: Tensor = field(repr=False)
    written: Tensor = field(repr=False)
    normed: str = ""
    before_norm: Tensor | None = field(default=None, repr=False)

    @property
    def product(self) -> Tensor:
        """``[... out]``: what the linear map itself gave out."""
        return self.written if self.before_norm is None else self.before_norm


@dataclass(frozen=True, eq=False)
class Moved:
    """A tensor that holds outputs of linear maps: moved, cut, joined, times constants, no more.

    Attributes:
        tensor: a copy, since rotary embeddings may write into it.
        scalings: (operation, number) in order: what each value was multiplied with on the way.
    """

    runs: tuple[LinearRun, ...]
    tensor: Tensor
    scalings: tuple[tuple[str, float], ...] = ()

    @property
    def factor(self) -> float:
        """The product of the constants."""
        product = 1.0
        for operation, number in self.scalings:
            product = product / number if operation == "div" else product * number
        return product


@dataclass(frozen=True, eq=False)
class Write:
    """What of a linear map's output was added to another tensor.

    Attributes:
        added: the addend, copied.
        factor: the one number that the output was multiplied with, if nothing else was done.
        norm: path of a norm that it passed, empty if none.
    """

    run: LinearRun
    added: Tensor = field(repr=False)
    factor: float | None = None
    norm: str = ""


def moved_before(node: Node) -> Iterator[tuple[Moved, list[Node]]]:
    """Outputs of linear maps that a tensor was made from, the latest first.

    With each come the operations met before it that were more than moving: a rotation by
    position, a norm. Nothing is looked for behind a product, another attention or a linear map.
    """
    queue, seen, crossed = [(-node.serial, id(node), node)], {id(node)}, []
    while queue:
        _, _, here = heapq.heappop(queue)
        if isinstance(here.note, Moved):
            yield here.note, list(crossed)
        elif here.kind in ("element", "norm", "join"):
            crossed.append(here)
        if here.kind in (*LOCAL, "norm"):
            for parent in here.parents:
                if id(parent) not in seen:
                    seen.add(id(parent))
                    heapq.heappush(queue, (-parent.serial, id(parent), parent))


def projected_inside(node: Node, scope: str) -> str:
    """Path of a linear map within ``scope`` that this was made by, empty if there is none.

    A sum with a stream or with learned queries ends the search: that is a residual stream.
    """
    queue, seen = [node], set()
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.kind == "projection" and here.path.startswith(f"{scope}."):
            return here.path
        sums = here.name in PLUS
        streams = [parent for parent in here.parents if len(parent.shape) > 1]
        if (sums and len(streams) > 1) or here.kind not in (*LOCAL, "norm"):
            continue
        queue.extend(parent for parent in here.parents if parent.kind != "weight")
    return ""
