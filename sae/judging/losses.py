"""What a loss of a model's output is, to whoever judges coders by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from probes.inputs import Batch

PerExample = tuple[Float[Tensor, " example"], Float[Tensor, " example"]]


class Loss(Protocol):
    """How far a model's output is from what it should be, summed over each example's reads.

    Attributes:
        name: such as ``cross_entropy``.
        unit: of one read, such as ``nats``.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def __call__(self, batch: Batch, output: Any, intact: Any) -> PerExample:
        """Sum over reads, and number of reads, of each example.

        Args:
            output: what the model returned.
            intact: what it returns when nothing is changed, for losses that compare with it; may
                be ``output`` itself.
        """
        ...


def losses_of(
    losses: Sequence[Loss], batch: Batch, output: Any, intact: Any
) -> Mapping[str, PerExample]:
    """Each loss of an output by name, float64 on the CPU.

    Raises:
        ValueError: a loss that is not per example of the batch.
    """
    found = {}
    for loss in losses:
        total, reads = (
            torch.as_tensor(part).detach().cpu().double() for part in loss(batch, output, intact)
        )
        if total.shape != (batch.size,) or reads.shape != (batch.size,):
            raise ValueError(
                f"The loss {loss.name!r} must give two numbers per example, [{batch.size}], got "
                f"{list(total.shape)} and {list(reads.shape)}. Sum over reads."
            )
        found[loss.name] = (total, reads)
    return found
