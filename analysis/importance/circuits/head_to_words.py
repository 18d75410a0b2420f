"""One head on its own: from the residual stream through its value and output matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.weights.head_weights import HeadWeights

if TYPE_CHECKING:
    from probes.subject import Subject


def through_norm(subject: Subject, weights: HeadWeights, stream: Tensor) -> Tensor:
    """Float32 ``[read width]``: the stream as the layer reads it."""
    assert weights.value is not None
    if not weights.value.reads:
        return stream.float()
    with torch.no_grad():
        return subject.model.get_submodule(weights.value.reads)(stream).float()


def value_and_output(weights: HeadWeights) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each query head ``W_V [width head_width]``, ``b_V`` and ``W_O`` into the stream."""
    output = weights.stream_output()
    assert weights.value is not None and output is not None
    value, bias = weights.value.matrix(), weights.value.bias()
    for head, kv in enumerate(weights.kv_of_head):
        yield value[kv], bias[kv], output[head]
