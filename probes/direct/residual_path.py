"""The residual path of a running model: linear functions stay in the graph, all others are cut.

Under `ResidualPath` a model runs without gradients, except for the functions that take the
residual stream on unchanged but for additions, scaling, reordering and norms (whose scale is
frozen). What is added to the stream from outside is a *part*; where a gradient comes back to it,
``gradient * values`` is what the part contributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes import operations as ops
from probes.direct import linear_functions as linear
from probes.direct.frozen_norm import FROZEN_NORMS, frozen_norm
from probes.heads import Site
from probes.interception import TensorTags, transparent

Kind = Literal["heads", "block", "embedding", "other", "constant"]


class PathError(ValueError):
    """The output is no sum of what was added to the residual stream; the sentence says why."""


@dataclass(frozen=True)
class Part:
    """Something that is added to the residual stream.

    Attributes:
        kind: ``heads`` (what an output projection gave, bias included), ``block`` (what a block
            adds beside its heads), ``embedding`` (what enters a tower's first block), ``other``
            (added outside all blocks), ``constant`` (biases and numbers on the path).
        site: tower and layer, for heads and block.
        name: tower of an embedding, module path of an other.
    """

    kind: Kind
    site: Site | None = None
    name: str = ""


@dataclass(frozen=True)
class Place:
    """Where the model is: the tower and layer of the block that runs, if any, and the module."""

    block: Site | None
    path: str


Arrival = Callable[[Part, Tensor, Tensor], None]
"""Gets a part, the gradient that came back to it, and its values (broadcastable)."""


def is_on_path(value: Any) -> bool:
    """Whether a tensor carries the residual stream; weights are leaves of the graph and do not."""
    return isinstance(value, Tensor) and value.requires_grad and not value.is_leaf


class ResidualPath(TorchFunctionMode):
    """Keeps the residual path of this thread's forward in the graph, and nothing else.

    Args:
        place: tells where the model is.
        arrived: called in the backward for every part that a gradient reaches.
        functional: asked at every linear map off the path, ``(input, weight, bias, output)``: the
            output to go on with where it is an output projection whose module is not called.
        buffers: ids of the model's buffers, which are as constant as its weights.

    Attributes:
        cuts: functions outside all blocks that took the stream and are not linear, in order.
        softcaps: limits of the soft caps whose ratio was frozen.
        reads: asked within blocks whether a linear map of the stream stays in the graph, for those
            who ask what values are made of. Without it what blocks read is cut.
    """

    def __init__(
        self,
        place: Callable[[], Place],
        arrived: Arrival,
        functional: Callable[[Tensor, Tensor, Any, Tensor], Tensor | None],
        buffers: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.place, self.arrived, self.functional = place, arrived, functional
        self.buffers = buffers
        self.cuts: list[tuple[str, str]] = []
        self.softcaps: list[float] = []
        self.anchors: dict[torch.device, Tensor] = {}
        self.reads: Callable[[Place], bool] = lambda place: False
        self._divided: TensorTags[float] = TensorTags()

    def source(self, values: Tensor, part: Part) -> Tensor:
        """The same values, cut from what made them, as a part of their own."""
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            anchor = self.anchors.get(values.device)
            if anchor is None:
                anchor = torch.zeros((), device=values.device, requires_grad=True)
                self.anchors[values.device] = anchor
            values = values.detach()
            kept = values.new_empty(0) if part.kind == "heads" else values
            return self._told(values + anchor.to(values.dtype), part, kept)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:  # a composite, see `transparent`
                return transparent(func)(*args, **kwargs)
        name = ops.name_of(func)
        if not any(is_on_path(tensor) for tensor in ops.tensors_in((args, kwargs))):
            output = func(*args, **kwargs)
            if name == "linear" and len(args) > 1:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                changed = self.functional(args[0], args[1], bias, output)
                return output if changed is None else changed
            return output
        if name in linear.HOMOGENEOUS:
            return self._followed(func, args, kwargs)
        if name in linear.MULTIPLIED or name in linear.DIVIDED:
            return self._scaled(name, func, args, kwargs)
        if name in linear.ADDITIVE:
            return self._added(name, func, args, kwargs)
        if name in FROZEN_NORMS and is_on_path(args[0] if args else kwargs.get("input")):
            return self._normed(name, func, args, kwargs)
        if name in linear.CONTRACTED:
            return self._contracted(name, func, args, kwargs)
        if name == "tanh" and self._divided.get(args[0]) is not None:
            return self._capped(func, args[0])
        return self._cut(name, func, args, kwargs)

    def _scaled(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        both = [is_on_path(value) for value in [*args[:2], *kwargs.values()]]
        if sum(both) > 1 or (name in linear.DIVIDED and not both[0]) or "rounding_mode" in kwargs:
            return self._cut(name, func, args, kwargs)
        output = self._followed(func, args, kwargs)
        if name in linear.DIVIDED and len(args) > 1 and isinstance(args[1], int | float):
            self._divided.set(output, float(args[1]))
        return output

    def _added(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operands = linear.added_operands(name, args, kwargs, is_on_path)
        if not operands:
            return self._followed(func, args, kwargs)
        constant = all(linear.is_constant(o) or id(o) in self.buffers for o in operands)
        changes = linear.works_in_place(name)
        with torch.no_grad():
            if name.strip("_") in ("add", "iadd", "radd") and "alpha" not in kwargs:
                off = operands[0]
                off = off.clone() if changes and off is args[0] else off
            else:
                off = self._without_path(func, args, kwargs, changes)
        output = self._followed(func, args, kwargs)
        target = args[0] if name == "__setitem__" else output
        part, off = self._part(constant), torch.as_tensor(off, device=target.device)
        if part.kind != "other" or bool(off.any()):  # zeros that something is added into
            self._told(target, part, off)
        return output

    def _without_path(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], changes: bool
    ) -> Tensor:
        """What an additive function gives if everything on the path is 0."""

        def emptied(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor) if is_on_path(tensor) else tensor

        bare = linear.mapped(args, emptied)
        if changes and bare[0] is args[0]:
            bare = (bare[0].clone(), *bare[1:])
        result = func(*bare, **linear.mapped(kwargs, emptied))
        return bare[0] if result is None else result

    def _normed(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch.no_grad():
            own = func(*args, **kwargs)
        with torch.enable_grad():
            output, bias = frozen_norm(name, args, kwargs, own)
        if isinstance(bias, Tensor):
            self._told(output, Part("constant"), bias.detach())
        return output

    def _contracted(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Inside a block a map of the stream is what heads and MLP read, not the stream going on.
        place = self.place()
        if place.block is not None and not self.reads(place):
            return self._cut(name, func, args, kwargs)
        bias = linear.bias_of(name, args, kwargs)
        operands = [t for t in ops.tensors_in((args, kwargs)) if is_on_path(t)]
        if len(operands) > 1 or is_on_path(bias):
            return self._cut(name, func, args, kwargs)
        output = self._followed(func, args, kwargs)
        if bias is not None:
            self._told(output, Part("constant"), bias.detach())
        return output

    def _capped(self, func: Any, x: Tensor) -> Tensor:
        """``cap * tanh(x / cap)``, as x times a ratio that is frozen like the scale of a norm."""
        self.softcaps.append(self._divided.get(x) or 0.0)
        with torch.no_grad():
            own = func(x)
            ratio = torch.where(x == 0, torch.ones_like(x), own / x)
        with torch.enable_grad():
            output = x * ratio
            return own + (output - output.detach())

    def _followed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = ops.name_of(func)
        target = args[0] if args and linear.works_in_place(name) else None
        if isinstance(target, Tensor) and not is_on_path(target) and target._is_view():
            # Autograd cannot: the view was made without gradients (Gemma 3n's four streams).
            place = self.place()
            if place.block is not None and self.reads(place):
                # Not the stream itself but what is read of it, such as a key put together.
                with torch.no_grad():
                    return func(*args, **kwargs)
            raise PathError(
                f"`{name}`{self._where()} puts the residual stream into a part of a tensor that "
                "does not carry it."
            )
        with torch.enable_grad():
            return func(*args, **kwargs)

    def _cut(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = self.place()
        changed = linear.works_in_place(name) and args and is_on_path(args[0])
        if changed or is_on_path(kwargs.get("out")):
            raise PathError(f"`{name}`{self._where()} changes the residual stream in place.")
        with torch.no_grad():
            output = func(*args, **kwargs)
        read = any(tensor.is_floating_point() for tensor in ops.tensors_in(output))
        if read and place.block is None and name not in linear.FRESH:
            self.cuts.append((name, place.path))
        return output

    def _where(self) -> str:
        path = self.place().path
        return f" in {path}" if path else ""

    def _part(self, constant: bool) -> Part:
        if constant:
            return Part("constant")
        place = self.place()
        if place.block is not None:
            return Part("block", place.block)
        return Part("other", name=place.path)

    def _told(self, output: Tensor, part: Part, values: Tensor) -> Tensor:
        if output.requires_grad:  # a key put together of what is read of the stream does not
            output.register_hook(partial(self._tell, part, values))
        return output

    def _tell(self, part: Part, values: Tensor, gradient: Tensor) -> None:
        self.arrived(part, gradient.detach(), values)
