"""The parts of a logit: what heads, MLPs, biases and embeddings add to it along the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.direct.residual_path import PathError
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch


@dataclass(frozen=True)
class DirectContributions:
    """A metric of the logits as a sum of what was added to the residual stream.

    Attributes:
        metric: float ``[example]``: what is decomposed.
        z: ``[batch query head value_width]`` by site, as the model computed it.
        gradient: float32, the same shapes: how the metric moves with z along the residual path,
            all norms frozen. ``(z - z') . gradient`` is the direct effect of putting z' for z.
        biases: ``[example]`` by site: the output projection's bias.
        mlps: ``[example]`` by tower and layer: what a block adds beside its heads (MLP, experts,
            a state-space mixer, heads whose output projection is not verified).
        embedding: ``[example]`` by tower: what enters the first block.
        others: ``[example]`` by module path: what is added outside all blocks.
        constant: ``[example]``: biases of the norms and of the unembedding.
        mismatch: largest ``|total - metric|``, in units of the largest part of the example.
        missing: sites without a direct path, and why.
        softcaps: soft caps of the logits that were taken as a frozen ratio.
    """

    batch: Batch
    metric: Tensor
    z: Mapping[Site, Tensor]
    gradient: Mapping[Site, Tensor]
    biases: Mapping[Site, Tensor]
    mlps: Mapping[Site, Tensor]
    embedding: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    constant: Tensor
    mismatch: float = 0.0
    missing: Mapping[Site, str] = field(default_factory=dict)
    softcaps: tuple[float, ...] = ()

    @cached_property
    def heads(self) -> dict[Site, Tensor]:
        """Float32 ``[batch query head]`` by site: what each head adds at each position."""
        return {site: (self.z[site].to(g.dtype) * g).sum(-1) for site, g in self.gradient.items()}

    @cached_property
    def head_sums(self) -> dict[Site, Tensor]:
        """Float32 ``[example head]`` by site: `heads` summed over each example's positions."""
        return {site: self.summed(heads) for site, heads in self.heads.items()}

    def summed(self, values: Tensor) -> Tensor:
        """``[example head]`` of ``values [batch query head]``, whose rows may be windows.

        Raises:
            PathError: the rows of examples cannot be told apart.
        """
        return example_sums(values, self.metric.shape[0], keep=1)

    @property
    def total(self) -> Tensor:
        """Float ``[example]``: the sum of all parts, which equals the metric."""
        return torch.stack(self.parts).sum(0)

    @property
    def parts(self) -> list[Tensor]:
        """``[example]`` each: everything that adds up to the metric, heads layer by layer."""
        heads = [sums.sum(-1).cpu() for sums in self.head_sums.values()]
        named = (self.biases, self.mlps, self.embedding, self.others)
        return [*heads, *(part for group in named for part in group.values()), self.constant]


def example_sums(values: Tensor, examples: int, keep: int = 0) -> Tensor:
    """``[example ...]``: the sum of ``values``, whose first (or second) axis runs over examples.

    Rows may be parts of examples, such as windows, if those of one example follow each other.

    Args:
        keep: how many of the last axes are not summed.

    Raises:
        PathError: neither axis does.
    """
    rest = values.shape[values.ndim - keep :]
    if values.ndim > keep and values.shape[0] and values.shape[0] % examples == 0:
        return values.reshape(examples, -1, *rest).sum(1).cpu()
    if values.ndim > keep + 1 and values.shape[1] == examples:
        return values.transpose(0, 1).reshape(examples, -1, *rest).sum(1).cpu()
    raise PathError(
        f"Rows must belong to one of {examples} examples, got shape {list(values.shape)}. "
        "Run one example at a time."
    )
