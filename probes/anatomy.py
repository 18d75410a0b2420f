"""The parts of a model around its attention, each verified on one forward or "not measured"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from probes.heads import Site


@dataclass(frozen=True)
class OutputProjection:
    """The linear map that takes the heads of one site back to the residual stream.

    Verified: its input is ``z`` with heads side by side, and the sum of the heads' contributions
    plus the bias equals its output.

    Attributes:
        path: module path, empty where the weights are used without calling their module.
        matrix_of: gives float32 ``[head, head_width, model_width]``.
    """

    path: str
    weight: nn.Parameter | None
    transposed: bool
    module: nn.Module | None = field(default=None, repr=False)

    def matrix(self, heads: int, head_width: int) -> Tensor:
        """Float32 ``[head, head_width, model_width]``: what each head writes per unit of z."""
        if self.weight is not None:
            weight = self.weight.detach().float()
            weight = weight if self.transposed else weight.T
        else:
            assert self.module is not None
            weight = linear_map(self.module, heads * head_width)
        return weight.reshape(heads, head_width, -1)


@dataclass(frozen=True)
class Block:
    """One block of a tower: where the residual stream enters and leaves it.

    Attributes:
        path: module path of the block.
        residual: whether its input was seen to be added to its attention's output.
    """

    path: str
    residual: bool


@dataclass(frozen=True)
class Anatomy:
    """What was found around the attention layers, and what was not.

    Attributes:
        projections: verified output projection by site.
        blocks: block by site.
        final_norm: tower to path of the norm after its last block.
        unembedding: path of the map from the final norm to the logits (language model head or
            classifier), empty if not verified.
        missing: sentence by part, for what could not be verified.
        shapes: heads and width of a head's output by site.
    """

    projections: Mapping[Site, OutputProjection] = field(default_factory=dict)
    blocks: Mapping[Site, Block] = field(default_factory=dict)
    final_norm: Mapping[str, str] = field(default_factory=dict)
    unembedding: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[Site, tuple[int, int]] = field(default_factory=dict)

    def output_matrix(self, site: Site) -> Tensor | None:
        """Float32 ``[head, head_width, model_width]``, or None where it is not verified."""
        found = self.projections.get(site)
        return None if found is None else found.matrix(*self.shapes[site])


def linear_map(module: nn.Module, width: int) -> Tensor:
    """Float32 ``[width, out]``: the matrix of a linear module, also of a quantised one."""
    reference = next((p for p in module.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if reference is None else reference.dtype
    device = next(module.parameters()).device
    with torch.no_grad():
        eye = torch.eye(width, dtype=dtype, device=device)
        return (module.forward(eye) - module.forward(torch.zeros_like(eye[:1]))).float()
