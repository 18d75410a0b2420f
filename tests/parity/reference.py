"""Attention patterns of a model's own eager run, read without any part of headscope.

The eager implementation of every family calls one of PyTorch's softmax functions and multiplies
the result with the values. Both are replaced for the time of one forward by functions that write
down what passes, and fused attention (a few classes have no other) by its textbook formula.
No lineage: the module that was running and the order of calls say which map it is, and a person
said in the table of families how many there must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

_SOFTMAX: list[tuple[Any, str]] = [
    (functional, "softmax"),
    (torch, "softmax"),
    (Tensor, "softmax"),
]
_PRODUCTS: list[tuple[Any, str]] = [
    (torch, "matmul"),
    (torch, "bmm"),
    (torch, "einsum"),
    (Tensor, "matmul"),
    (Tensor, "__matmul__"),
    (Tensor, "bmm"),
]
_FUSED: list[tuple[Any, str]] = [(functional, "scaled_dot_product_attention")]
_THIN = (nn.Softmax, nn.Dropout, nn.Identity)


@dataclass
class EagerMap:
    """One softmax of an eager run that was multiplied with values.

    Attributes:
        path: module that was running.
        pattern: what entered the product, ``[... query key]``: after talking heads and gates,
            without the column of a learned sink.
        z: what the product returned ``[... query width]``; ``None`` after an einsum.
    """

    path: str
    pattern: Tensor
    z: Tensor | None


class _Recorder:
    def __init__(self) -> None:
        self.maps: list[EagerMap] = []
        self.stack = [""]
        self._open: list[tuple[str, Tensor]] = []
        self._depth = 0

    def softmax(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **named: Any) -> Tensor:
            self._depth += 1
            try:
                result = original(*args, **named)
            finally:
                self._depth -= 1
            if self._depth == 0 and result.ndim >= 3:
                self._open = [entry for entry in self._open if entry[0] == self.stack[-1]]
                self._open.append((self.stack[-1], result))
            return result

        return wrapped

    def product(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **named: Any) -> Tensor:
            result = original(*args, **named)
            parts = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
            tensors = [part for part in parts if isinstance(part, Tensor)]
            for position, operand in enumerate(tensors[:2]):
                if self._is_pattern(operand):
                    # A copy: some models add to the product in place afterwards.
                    self.maps.append(
                        _as_map(self.stack[-1], operand, result.clone(), position, args[0])
                    )
                    self._open.clear()
                    break
            return result

        return wrapped

    def _is_pattern(self, operand: Tensor) -> bool:
        for path, softmax in self._open:
            same = operand.data_ptr() == softmax.data_ptr()
            # Talking heads and gates make a new tensor of the same shape in the same module.
            if same or (path == self.stack[-1] and operand.shape == softmax.shape):
                return True
        return False


def _as_map(path: str, operand: Tensor, result: Tensor, position: int, first: Any) -> EagerMap:
    if isinstance(first, str):
        return EagerMap(path, operand, None)
    if position == 1:
        return EagerMap(path, operand.mT, result.mT)
    return EagerMap(path, operand, result)


def eager_maps(model: nn.Module, tensors: dict[str, Any]) -> tuple[list[EagerMap], Any]:
    """The attention maps of one forward, in order, and the outputs."""
    recorder = _Recorder()
    with ExitStack() as replaced:
        replaced.enter_context(_no_fast_path())
        replaced.enter_context(_module_stack(model, recorder.stack))
        replaced.enter_context(_replaced(_SOFTMAX, recorder.softmax))
        replaced.enter_context(_replaced(_PRODUCTS, recorder.product))
        replaced.enter_context(_replaced(_FUSED, lambda _: plain_attention))
        outputs = run(model, tensors)
    return recorder.maps, outputs


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` as PyTorch's documentation writes it out."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    pattern = functional.softmax(scores, dim=-1).masked_fill(empty, 0.0)
    return torch.matmul(pattern, value)


def run(model: nn.Module, tensors: dict[str, Any]) -> Any:
    """One forward without gradients; families that draw numbers draw the same ones each time."""
    # Without a cache, as a subject's forward runs it: fsmt computes something else with one.
    takes_cache = "use_cache" in signature(model.forward).parameters
    settings = {"use_cache": False} if takes_cache else {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**tensors, **settings)


def flat_tensors(outputs: Any) -> list[Tensor]:
    """All floating tensors in a model's outputs, in order, caches left out."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        kept = [value for key, value in outputs.items() if "past_key_values" not in str(key)]
        return [tensor for value in kept for tensor in flat_tensors(value)]
    if isinstance(outputs, (list, tuple)):
        return [tensor for value in outputs for tensor in flat_tensors(value)]
    return []


@contextmanager
def _no_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _replaced(places: list[tuple[Any, str]], wrap: Callable[..., Any]) -> Iterator[None]:
    saved = [(owner, name, getattr(owner, name)) for owner, name in places]
    try:
        for owner, name, original in saved:
            setattr(owner, name, wrap(original))
        yield
    finally:
        for owner, name, original in saved:
            setattr(owner, name, original)


@contextmanager
def _module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    def leave(*_: Any) -> None:
        stack.pop()  # a hook that returned this would replace the module's output

    handles = []
    for path, module in model.named_modules():
        if not isinstance(module, _THIN):
            handles.append(
                module.register_forward_pre_hook(lambda *_, path=path: stack.append(path))
            )
            handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
