"""Gates behind the blocks of a model: open they change nothing, shut no gradient goes through."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Gate:
    """One run of one block; shut, gradients take the residual path around it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.shut = False


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entered: Tensor, left: Tensor, gate: _Gate) -> Tensor:
        ctx.gate = gate
        # A copy, not a view: models that add to their residual stream in place must be able to.
        return left.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        return (gradient, None, None) if ctx.gate.shut else (None, gradient, None)


class BlockGates:
    """The gates of one forward, in the order in which the blocks ran."""

    def __init__(self) -> None:
        self.gates: list[_Gate] = []

    @property
    def paths(self) -> tuple[str, ...]:
        """Module path of the block behind which each gate stands."""
        return tuple(gate.path for gate in self.gates)

    @contextmanager
    def shut(self, number: int) -> Iterator[None]:
        """Within, gradients pass the block of this number by: it is the residual identity."""
        gate = self.gates[number]
        gate.shut = True
        try:
            yield
        finally:
            gate.shut = False


@contextmanager
def gated(model: nn.Module, paths: Sequence[str]) -> Iterator[BlockGates]:
    """Put a gate behind every run of these blocks while the ``with`` block runs the model.

    Values of the forward are the same bit for bit. Only this thread's forwards are gated.

    Raises:
        ValueError: a block does not give back what entered it in the same shape, so that it has
            no residual path.
    """
    gates, handles, thread = BlockGates(), [], threading.get_ident()

    def behind(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
            if threading.get_ident() != thread:
                return None
            entered = args[0] if args else kwargs.get("hidden_states")
            left = output[0] if isinstance(output, (tuple, list)) else output
            same = isinstance(entered, Tensor) and isinstance(left, Tensor)
            if not same or entered.shape != left.shape:
                raise ValueError(
                    f"Block {path} must give back a tensor of the shape that entered it, so that "
                    "gradients can go around it; it does not. Leave GradDrop out for this model."
                )
            gate = _Gate(path)
            gates.gates.append(gate)
            passed = _Pass.apply(entered, left, gate)
            if isinstance(output, (tuple, list)):
                return type(output)((passed, *output[1:]))
            return passed

        return hook

    try:
        for path in dict.fromkeys(paths):
            module = model.get_submodule(path)
            handles.append(module.register_forward_hook(behind(path), with_kwargs=True))
        yield gates
    finally:
        for handle in handles:
            handle.remove()
