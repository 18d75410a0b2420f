"""The mode that sees every attention of the models' own code, in the thread that entered it.

Two places are watched: ``scaled_dot_product_attention``, and a softmax whose result feeds a
product with values. Nothing in the model is replaced, no implementation is switched.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probes import operations as ops
from probes.raw_attention import NotAnAttentionPattern, RawAttention, from_product, from_sdpa

Note = TypeVar("Note")
LARGEST_HEAD_MIX = 64
"""A square weight up to this size on a 4-D tensor mixes heads (talking heads)."""


class TensorTags(Generic[Note]):
    """Notes on tensors, dropped when a tensor is. Tensors compare by value, so no plain dict."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[weakref.ref[Tensor], Note]] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def get(self, tensor: Tensor) -> Note | None:
        found = self._notes.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def set(self, tensor: Tensor, note: Note) -> None:
        key = id(tensor)

        def forget(reference: weakref.ref[Tensor]) -> None:
            found = self._notes.get(key)
            if found is not None and found[0] is reference:
                del self._notes[key]

        self._notes[key] = (weakref.ref(tensor, forget), note)


@dataclass(frozen=True)
class FollowedSoftmax:
    """A softmax on its way to the values.

    Attributes:
        path: module that called the softmax.
        obstacle: why its result is no pattern of one row per query any more, empty if it is.
        number: how many softmaxes came before it in this run of the module.
    """

    path: str
    obstacle: str = ""
    number: int = 0


@dataclass(frozen=True)
class Surroundings:
    """What the mode asks about the place where a call happens.

    Attributes:
        path: the module that is running.
        follows_softmax: whether a softmax here may be attention.
        heads: head count of one call of the site, if known.
        run: tells one run of the module from another.
    """

    path: str
    follows_softmax: bool = True
    heads: int | None = None
    run: tuple[int, int] = (0, 0)


Receiver = Callable[[RawAttention, FollowedSoftmax | None], Tensor | None]
"""Gets each attention; returns a new ``z`` to hand to the model, or None to leave it."""


class AttentionMode(TorchFunctionMode):
    """Hands each attention of this thread to a receiver while the model runs.

    Args:
        receive: called with every attention, after the model's own function computed it.
        surroundings: tells where the model is.
        examples: rows of the batch, to unfold ``[batch * head, query, key]``.
    """

    def __init__(
        self,
        receive: Receiver,
        surroundings: Callable[[], Surroundings],
        examples: Callable[[], int | None] = lambda: None,
    ) -> None:
        super().__init__()
        self.receive, self.surroundings, self.examples = receive, surroundings, examples
        self.patterns: TensorTags[FollowedSoftmax] = TensorTags()
        self._softmaxes: dict[str, tuple[tuple[int, int], int]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.on_sdpa(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            # A composite: seen from outside it is one opaque call, so its body runs in the mode.
            with self:
                return transparent(func)(*args, **kwargs)
        if len(self.patterns) or ops.name_of(func) in ops.SOFTMAX:
            return self.on_other(func, args, kwargs)
        return func(*args, **kwargs)

    def on_sdpa(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output = func(*args, **kwargs)
        raw = from_sdpa(
            output, *args, **kwargs, heads=self.surroundings().heads, examples=self.examples()
        )
        return self._answer(raw, None, output)

    def on_other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Follow a softmax through the functions between it and the values."""
        output = func(*args, **kwargs)
        name = ops.name_of(func)
        if name in ops.SOFTMAX:
            place = self.surroundings()
            if place.follows_softmax and isinstance(output, Tensor) and output.ndim >= 2:
                self.patterns.set(output, self.note_softmax(place))
            return output
        met = [(t, note) for t in ops.tensors_in(args) if (note := self.patterns.get(t))]
        if not met:
            return output
        tensor, note = met[0]
        if name in ops.PRODUCT:
            return self.on_product(name, args, output, tensor, note, len(met) > 1)
        self._pass_on(name, args, output, tensor, note)
        return output

    def note_softmax(self, place: Surroundings, obstacle: str = "") -> FollowedSoftmax:
        """A note for a softmax that is taken here and now."""
        run, number = self._softmaxes.get(place.path, (place.run, -1))
        number = number + 1 if run == place.run else 0
        self._softmaxes[place.path] = (place.run, number)
        return FollowedSoftmax(place.path, obstacle, number=number)

    def on_product(
        self,
        name: str,
        args: tuple[Any, ...],
        output: Tensor,
        pattern: Tensor,
        note: FollowedSoftmax,
        several: bool,
    ) -> Tensor:
        if several:
            self.refuse(note, "a product of two softmax maps (factorised attention)")
            return output
        if note.obstacle:
            self.refuse(note, note.obstacle)
            return output
        try:
            heads = self.surroundings().heads
            raw = from_product(name, args, output, pattern, self.examples(), heads)
        except NotAnAttentionPattern as reason:
            self.refuse(note, str(reason))
            return output
        return self._answer(raw, note, output)

    def refuse(self, note: FollowedSoftmax, reason: str) -> None:
        """Called for a softmax that reached a product but is no pattern. Observation keeps it."""

    def _pass_on(
        self, name: str, args: tuple[Any, ...], output: Any, tensor: Tensor, note: FollowedSoftmax
    ) -> None:
        if name in ops.LAYOUT_CHANGE:
            note = replace(note, obstacle="the pattern is kept in a banded layout")
        elif name in ops.PROJECTION:
            weight = args[1] if len(args) > 1 else None
            if not isinstance(weight, Tensor) or weight.shape[0] > LARGEST_HEAD_MIX:
                return
            if weight.shape[0] != weight.shape[1] or tensor.ndim < 4:
                return
        elif name not in ops.SHAPE and name not in ops.SLICE:
            same = isinstance(output, Tensor) and output.shape == tensor.shape
            if not same or not output.is_floating_point():
                return
        for result in ops.tensors_in(output):
            if result.ndim >= 2 and result.is_floating_point():
                self.patterns.set(result, note)

    def _answer(self, raw: RawAttention, note: FollowedSoftmax | None, output: Tensor) -> Tensor:
        new = self.receive(raw, note)
        return output if new is None else raw.restore(new).to(output.dtype)


@cache
def transparent(function: types.FunctionType) -> types.FunctionType:
    """The same function with a body that no longer hands itself to the mode as a whole."""
    scope = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
