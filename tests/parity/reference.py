"""Attention patterns of a model's own eager run, read without any part of headscope.

The eager implementation of every family calls one of PyTorch's softmax functions and multiplies
the result with the values. Both are replaced for the time of one forward by functions that write
down what they return, and fused attention (a few classes have no other) by its textbook formula.
No lineage, no shapes guessed: the module that was running and the order of calls say which map it
is, and a person said in the table of families how many there must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
    """One softmax of an eager run.

    Attributes:
        path: module that was running.
        pattern: what the softmax returned: ``[... query key]``.
        z: what a product of it returned, ``None`` where none was seen.
    """

    path: str
    pattern: Tensor
    z: Tensor | None = None


def eager_maps(model: nn.Module, tensors: dict[str, Any]) -> tuple[list[EagerMap], Any]:
    """Softmax maps of three and more dimensions of one forward, in order, and the outputs."""
    seen: list[EagerMap] = []
    stack = [""]
    depth = [0]

    def softmax(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **named: Any) -> Tensor:
            depth[0] += 1
            try:
                result = original(*args, **named)
            finally:
                depth[0] -= 1
            if depth[0] == 0 and result.ndim >= 3:
                seen.append(EagerMap(stack[-1], result))
            return result

        return wrapped

    def product(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **named: Any) -> Tensor:
            result = original(*args, **named)
            parts = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
            places = {part.data_ptr() for part in parts if isinstance(part, Tensor)}
            for one in seen[-2:]:
                if one.z is None and one.pattern.data_ptr() in places:
                    one.z = result
            return result

        return wrapped

    replaced = [(_SOFTMAX, softmax), (_PRODUCTS, product), (_FUSED, lambda _: plain_attention)]
    with ExitStack() as open_contexts:
        open_contexts.enter_context(_module_stack(model, stack))
        for places, wrap in replaced:
            open_contexts.enter_context(_replaced(places, wrap))
        outputs = run(model, tensors)
    return seen, outputs


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
    pattern = functional.softmax(scores, dim=-1)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.matmul(pattern.masked_fill(empty, 0.0) if empty.any() else pattern, value)


def run(model: nn.Module, tensors: dict[str, Any]) -> Any:
    """One forward without gradients; families that draw numbers draw the same ones each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**tensors)


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
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, _THIN):
            continue
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
