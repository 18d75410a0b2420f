"""How an answer's probability changes with what enters a tower at each position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from analysis.vision.answer_score import AnswerTokens, log_probabilities
from probes.heads import Site
from probes.operations import tensors_in

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class SourceGradients:
    """Gradients of sums of log-probabilities, by position of a tower.

    Attributes:
        norm: float32 ``[group position]``: length of the gradient at what enters the tower.
        times_input: float32, the same: ``|gradient . input|``.
        output_norm: float32, the same: length of the gradient at what leaves the tower; None for
            a tower that writes the answer itself.
    """

    norm: Tensor
    times_input: Tensor
    output_norm: Tensor | None


def source_gradients(
    subject: Subject,
    batch: Batch,
    tokens: AnswerTokens,
    groups: Sequence[Tensor],
    tower: str,
    *,
    output: bool,
) -> SourceGradients:
    """One forward, and one backward for each group of tokens.

    Args:
        groups: bool ``[token]``: tokens whose log-probabilities are added up; examples do not mix,
            so one group may hold tokens of several.
        tower: whose first block's input is looked at: the embeddings of words and image.
        output: also look at what its last block gives out.

    Raises:
        ValueError: what enters the tower is not known, or has not one vector for each position.
    """
    blocks = subject.layout.anatomy.blocks
    layers = sorted(site.layer for site in blocks if site.tower == tower)
    if not layers:
        raise ValueError(
            f"The gradient at {tower} needs its blocks, which were not found in {subject.name!r}. "
            "Choose another model."
        )
    first, last = (blocks[Site(tower, layers[end])].path for end in (0, -1))
    watch = _Watch(subject.model.get_submodule(first), subject.model.get_submodule(last))
    with watch.standing():
        scores = log_probabilities(subject, batch, tokens, differentiable=True)
    size = len(batch.tokens[tower])
    entered = _checked(watch.entered, tower, size)
    left = _checked(watch.left, tower, size) if output else None
    wanted = [entered] if left is None else [entered, left]
    norms, products, outputs = [], [], []
    for number, group in enumerate(groups):
        total = scores[group.to(scores.device)].sum()
        found = torch.autograd.grad(
            total, wanted, retain_graph=number + 1 < len(groups), allow_unused=True
        )
        grads = [
            torch.zeros_like(at) if grad is None else grad
            for grad, at in zip(found, wanted, strict=True)
        ]
        flat = [_flat(grad, size) for grad in grads]
        norms.append(torch.linalg.vector_norm(flat[0], dim=-1))
        products.append((flat[0] * _flat(entered.detach(), size)).sum(-1).abs())
        if output:
            outputs.append(torch.linalg.vector_norm(flat[1], dim=-1))
    return SourceGradients(
        torch.stack(norms).cpu(),
        torch.stack(products).cpu(),
        torch.stack(outputs).cpu() if output else None,
    )


@dataclass
class _Watch:
    """Makes what enters the first block a leaf, and keeps what leaves the last one."""

    first: nn.Module
    last: nn.Module
    entered: Tensor | None = None
    left: Tensor | None = None
    _handles: list[Any] = field(default_factory=list)

    @contextmanager
    def standing(self) -> Iterator[None]:
        def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            found = kwargs.get("hidden_states")
            named = isinstance(found, Tensor)
            if not named:
                found = next((one for one in args if isinstance(one, Tensor)), None)
            if not isinstance(found, Tensor) or not found.is_floating_point():
                return None
            self.entered = leaf = found.detach().requires_grad_()
            if named:
                return args, {**kwargs, "hidden_states": leaf}
            return tuple(leaf if one is found else one for one in args), kwargs

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.left = next(tensors_in(output), None)

        try:
            handle = self.first.register_forward_pre_hook(enter, with_kwargs=True)
            self._handles.append(handle)
            self._handles.append(self.last.register_forward_hook(leave))
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()


def _checked(found: Tensor | None, tower: str, positions: int) -> Tensor:
    if found is None or found.numel() != positions * found.shape[-1]:
        shape = None if found is None else list(found.shape)
        raise ValueError(
            f"What enters and leaves {tower} must be one vector for each of its {positions} "
            f"positions, got {shape}. Choose another model."
        )
    return found


def _flat(values: Tensor, positions: int) -> Tensor:
    return values.float().reshape(positions, -1)
