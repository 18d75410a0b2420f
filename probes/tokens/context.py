"""What a map of tokens is made from: the tensors of a batch, the configuration, the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from probes.tokens.patches import Placement
from probes.tokens.placement import placement_of


@dataclass(frozen=True)
class TowerFacts:
    """What is known of a tower before its positions are named.

    Attributes:
        kind: ``language``, ``encoder``, ``decoder``, ``vision``, ``cross``, ``audio`` or
            ``resampler``. Taken from the name where it is left empty.
        path: path of the module that holds its layers; empty if not known.
        lengths: number of positions of each row as observed in this batch; empty if not known.
            A map that does not agree with it is thrown away.
        alike: whether all layers have the same heads. A vision tower of which they change
            (Swin, PVT) merges patches between its stages: one map cannot serve all its layers.
    """

    name: str
    kind: str = ""
    path: str = ""
    lengths: tuple[int, ...] = ()
    alike: bool = True


@dataclass(frozen=True)
class Context:
    """One batch as a processor made it, and the model that will read it.

    Attributes:
        tensors: keyword arguments of the forward.
        image_sizes: (width, height) in pixels of each original image, in the order in which the
            processor was given them.
        image_examples: index of the example that each image belongs to.
    """

    model: nn.Module | None
    config: Any
    processor: Any
    tokenizer: Any
    tensors: Mapping[str, Any]
    image_sizes: Sequence[tuple[int, int]] = ()
    image_examples: Sequence[int] = ()
    placements: dict[tuple[int, ...], Placement | None] = field(default_factory=dict)

    @property
    def image_processor(self) -> Any:
        """The part of the processor that makes pixels, or the processor itself."""
        return getattr(self.processor, "image_processor", self.processor)

    @property
    def vision_config(self) -> Any:
        """The configuration of the vision tower; the whole configuration if there is no other."""
        return getattr(self.config, "vision_config", None) or self.config

    @property
    def examples(self) -> int:
        """Number of examples: rows of the ids, else images."""
        for name in ("input_ids", "decoder_input_ids", "input_features", "input_values"):
            value = self.tensors.get(name)
            if isinstance(value, Tensor):
                return value.shape[0]
        if self.image_examples:
            return max(self.image_examples) + 1
        pixels = self.tensors.get("pixel_values")
        return pixels.shape[0] if isinstance(pixels, Tensor) else 0

    @property
    def images(self) -> int:
        """Number of original images in the batch."""
        return len(self.image_sizes)

    @cached_property
    def image_of_example(self) -> list[int]:
        """For each image, its index within its example."""
        seen: dict[int, int] = {}
        order = []
        for example in self.image_examples:
            order.append(seen.get(example, 0))
            seen[example] = order[-1] + 1
        return order

    def setting(self, name: str, default: Any = None) -> Any:
        """A field of the configuration, or else of the processor."""
        for holder in (self.config, self.processor, self.image_processor):
            value = getattr(holder, name, None)
            if value is not None:
                return value
        return default

    @property
    def image_token_id(self) -> int | None:
        """Id of the token that stands for a piece of an image in the text."""
        for name in ("image_token_id", "image_token_index"):
            value = self.setting(name)
            if isinstance(value, int):
                return value
        return None

    def pair(self, value: Any) -> tuple[int, int]:
        """A size that may be one number as (rows, columns)."""
        if isinstance(value, Mapping):
            return int(value["height"]), int(value["width"])
        if isinstance(value, (tuple, list)):
            return int(value[0]), int(value[-1])
        return int(value), int(value)

    def placement(self, image: int, canvas: Tensor) -> Placement | None:
        """How this image lies on its canvas ``[..., row, column]``."""
        width, height = self.image_sizes[image]
        key = (width, height, *canvas.shape[-2:])
        if key not in self.placements:
            self.placements[key] = placement_of(self.image_processor, width, height, canvas)
        return self.placements[key]


def as_list(value: Any) -> list[Any]:
    """A tensor, array or nested list as plain lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    return value.tolist() if hasattr(value, "tolist") else list(value)


def starts_of(lengths: Sequence[int]) -> Tensor:
    """Long ``[rows + 1]``: where each row begins in the flat columns, and the total."""
    return torch.tensor([0, *lengths], dtype=torch.long).cumsum(0)
