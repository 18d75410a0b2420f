"""What an observed forward is written down as: calls and runs of modules."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from probes.anatomy import OutputProjection
from probes.lineage import Node


@dataclass
class ObservedCall:
    """One attention call of the observed forward."""

    path: str
    occurrence: int
    inside: int
    source: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_width: int
    value_width: int
    causal: bool
    cross: bool
    learned_query: bool
    input_shape: tuple[int, ...]
    mismatch: float
    row_sums: str
    z: Tensor = field(repr=False)
    softmax_path: str = ""
    softmax_number: int = 0
    projection: OutputProjection | None = None
    projection_obstacle: str = "no linear map was seen to read z"
    projected: Node | None = field(default=None, repr=False)


@dataclass
class ModuleRun:
    """One run of one module: lineage of its first tensor input and of its output."""

    path: str
    module: nn.Module
    entered: Node | None
    input_shape: tuple[int, ...]
    left: Node | None = None
    read: Tensor | None = None
