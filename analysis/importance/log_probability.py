"""Log probabilities of some choices, with their gradient written out.

A vocabulary is large: what autograd makes of ``logits - logsumexp(logits)`` walks through
``[read width]`` eight times, and the gradient ``chosen - p`` takes two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROW_ELEMENTS = 1 << 19
"""Rows that fit the cache: for a large vocabulary several times as fast as in one piece."""


def log_probability(read: Tensor, targets: Tensor) -> Tensor:
    """``[read choice]``: log of the softmax of ``read [read width]`` at ``targets [read choice]``.

    Can be differentiated once.
    """
    return _LogProbability.apply(read, targets)  # pyright: ignore[reportReturnType]


def blocks_of_rows(read: Tensor) -> Iterator[slice]:
    """Blocks of the rows of ``[read width]`` that are worked on at once."""
    rows = max(1, _ROW_ELEMENTS // max(read.shape[1], 1))
    for start in range(0, read.shape[0], rows):
        yield slice(start, min(start + rows, read.shape[0]))


class _LogProbability(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, read: Tensor, targets: Tensor) -> Tensor:
        total = read.new_empty(read.shape[0], 1)
        for rows in blocks_of_rows(read):
            torch.logsumexp(read[rows], -1, keepdim=True, out=total[rows])
        ctx.save_for_backward(read, targets, total)
        return read.gather(1, targets) - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        read, targets, total = ctx.saved_tensors
        gradient = torch.empty_like(read)
        weight = -given.sum(1, keepdim=True)
        for rows in blocks_of_rows(read):
            part = torch.sub(read[rows], total[rows], out=gradient[rows])
            part.exp_().mul_(weight[rows])
        return gradient.scatter_add_(1, targets, given), None
