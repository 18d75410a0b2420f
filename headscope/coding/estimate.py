"""What a training of coders will cost, from one chunk of head outputs and a few steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.precision import duration, plain

if TYPE_CHECKING:
    from torch import Tensor

    from sae.activations.source import Activations
    from sae.training.config import TrainConfig

_STEPS = 3
_FLOAT = 4
_COPIES = 4
"""Of the parameters: themselves, their gradients, and two moments."""


@dataclass(frozen=True)
class SiteCost:
    """One coder."""

    site: str
    width: int
    heads: int
    latents: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class TrainingEstimate:
    """What `headscope sae train --dry-run` prints.

    Attributes:
        epochs: how often the data are gone through; None where no row came of the first chunk.
        forward_seconds: for all forwards.
        memory_bytes: of coders, gradients, moments and buffered rows, without the model.
    """

    model: str
    data: str
    examples: int
    steps: int
    tokens: int
    epochs: float | None
    sites: tuple[SiteCost, ...]
    forward_seconds: float
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Forwards and steps of all sites."""
        return self.forward_seconds + sum(site.seconds for site in self.sites)

    def lines(self) -> list[str]:
        """Sentences for the terminal."""
        epochs = (
            "" if self.epochs is None else f", about {plain(self.epochs)} times through the data"
        )
        return [
            f"{self.model} on {self.data}: {self.examples:,} examples to train on",
            *(
                f"{each.site}  width {each.width} ({each.heads} heads), {each.latents:,} latents, "
                f"{each.parameters:,} parameters, steps about {duration(each.seconds)}"
                for each in self.sites
            ),
            f"tokens   {self.tokens:,} per site in {self.steps:,} steps{epochs}",
            f"memory   about {self.memory_bytes / 1e6:,.0f} MB besides the model",
            f"time     about {duration(self.seconds)}, of which forwards "
            f"{duration(self.forward_seconds)}",
            "Nothing was written.",
        ]


def estimate_training(
    model: str, data: str, examples: int, rows: Activations, config: TrainConfig, coders: int = 1
) -> TrainingEstimate:
    """Sizes, memory and time of a training.

    Args:
        examples: that are trained on.
        coders: how many are trained at each site (a sweep).

    Raises:
        ValueError: what training raises on the first rows.
    """
    began = time.perf_counter()
    chunk: Mapping[str, Tensor] = next(iter(rows.chunks(0)), {})
    took = time.perf_counter() - began
    heads, there = rows.heads, max((len(part) for part in chunk.values()), default=0)
    sites = tuple(
        _cost(site, width, heads[site], chunk.get(site), config, coders)
        for site, width in rows.widths.items()
    )
    in_chunk = getattr(rows, "batch_size", 1)
    in_all = there / in_chunk * examples
    buffered = min(config.buffer_rows, config.tokens)
    kept = sum(_COPIES * each.parameters * coders + buffered * each.width for each in sites)
    return TrainingEstimate(
        model,
        data,
        examples,
        config.steps(),
        config.tokens,
        config.tokens / in_all if in_all else None,
        sites,
        took * config.tokens / there if there else 0.0,
        kept * _FLOAT,
    )


def _cost(
    site: str, width: int, heads: int, rows: Any, config: TrainConfig, coders: int
) -> SiteCost:
    import torch

    from sae.activations import TensorActivations
    from sae.coders.registry import make_coder
    from sae.training.metrics import Record
    from sae.training.train import train

    coder = make_coder(config, width)
    parameters = sum(weight.numel() for weight in coder.parameters())
    latents = coder.latents
    del coder
    seconds: list[float] = []
    if rows is not None and len(rows):
        size = config.batch_size
        some = rows.float().repeat(-(-size // len(rows)), 1)[:size]
        # Rows that repeat cost as much as others.
        trial = replace(config, tokens=_STEPS * size, buffer_rows=size, log_every=1)
        source = TensorActivations(some + 1e-6 * torch.arange(size, device=some.device)[:, None])
        told = []
        train(trial, source, listener=lambda one: told.append(one))
        seconds = [one.seconds for one in told if isinstance(one, Record)]
    # The first step also starts what is needed.
    each = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 0.0
    return SiteCost(site, width, heads, latents, parameters, each * config.steps() * coders)
