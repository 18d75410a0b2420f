"""Which linear map takes z back to the residual stream, and the proof that heads add up in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probes.anatomy import OutputProjection
from probes.lineage import Node
from probes.observed import ModuleRun, ObservedCall


def meet_projection(x: Tensor, calls: list[ObservedCall], module: nn.Module, path: str) -> None:
    """Note a linear module that is about to read z of these calls, heads side by side."""
    if not calls or any(call.projection or call.projected for call in calls):
        return
    if not _reads_heads_side_by_side(x, calls):
        for call in calls:
            call.projection_obstacle = f"{path} reads it in an order that is not understood"
        return
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and weight.ndim == 2
    transposed = type(module).__name__ == "Conv1D"
    found = OutputProjection(path, weight if plain else None, transposed, module)
    for call in calls:
        call.projection = found


def verify_projection(calls: list[ObservedCall], run: ModuleRun, output: Tensor) -> None:
    """Keep the projection that has just run only if the heads' contributions add up."""
    for call in calls:
        found = call.projection
        if found is None or found.path != run.path or call.projected is not None:
            continue
        call.projected = run.left
        assert run.read is not None
        bias = getattr(run.module, "bias", None)
        problem = _sum_of_heads_problem(found, run.read, call.value_width, bias, output)
        if problem:
            call.projection, call.projection_obstacle = None, problem


def meet_functional(
    calls: list[ObservedCall],
    x: Tensor,
    weight: nn.Parameter,
    bias: Any,
    output: Tensor,
    projected: Node,
) -> None:
    """A linear map that reads z without its module being called (nn.MultiheadAttention)."""
    if not calls or any(call.projection or call.projected for call in calls):
        return
    if not _reads_heads_side_by_side(x, calls, any_order=True):
        return
    found = OutputProjection("", weight, False)
    problem = _sum_of_heads_problem(found, x, calls[0].value_width, bias, output)
    for call in calls:
        call.projected = projected
        call.projection = None if problem else found
        call.projection_obstacle = problem


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: it has a matrix, and is no embedding."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (
        isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)
    )


def _side_by_side(calls: list[ObservedCall]) -> Tensor | None:
    """``[rows, heads * value_width]`` of one or several calls, or None if they do not fit."""
    if len({call.heads for call in calls}) == 1 and len(calls) > 1:
        same = len({call.queries for call in calls}) == 1
        axis = 1 if same and calls[0].source == "softmax" else 2
        z = torch.cat([call.z for call in calls], dim=axis)
    elif len(calls) == 1:
        z = calls[0].z
    else:
        return None
    return z.transpose(1, 2).reshape(-1, z.shape[1] * z.shape[3])


def _reads_heads_side_by_side(
    x: Tensor, calls: list[ObservedCall], *, any_order: bool = False
) -> bool:
    z = _side_by_side(calls)
    if z is None or x.numel() != z.numel() or x.shape[-1] != z.shape[-1]:
        return False
    if torch.equal(x.reshape(z.shape).float(), z.to(x.dtype).float()):
        return True
    if not any_order or len(calls) > 1:
        return False
    token_first = calls[0].z.permute(2, 0, 1, 3).reshape(z.shape)
    return torch.equal(x.reshape(z.shape).float(), token_first.to(x.dtype).float())


def _sum_of_heads_problem(
    found: OutputProjection, z: Tensor, head_width: int, bias: Any, output: Tensor
) -> str:
    """Why the heads' contributions to ``output`` do not add up to it, empty if they do."""
    z = z.reshape(-1, z.shape[-1]).float()
    matrix = found.matrix(z.shape[-1] // head_width, head_width).flatten(0, 1)
    name = found.path or "the projection"
    if matrix.shape[-1] != output.shape[-1]:
        return f"{name} is not a plain linear map"
    expected = z @ matrix
    if isinstance(bias, Tensor):
        expected = expected + bias.detach().float()
    actual = output.reshape(-1, output.shape[-1]).float()
    if expected.shape != actual.shape:
        return f"{name} changes the number of positions"
    error = float((expected - actual).abs().amax() / actual.abs().amax().clamp_min(1e-12))
    tolerance = 1e-3 if output.dtype == torch.float32 else 5e-2
    if not error <= tolerance:
        return f"the heads' contributions do not add up to the output of {name} ({error:.1e})"
    return ""
