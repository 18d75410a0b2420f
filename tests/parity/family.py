"""One row of the parity table: how to build a small model of a family and what to expect of it.

Everything here is independent of the tap: a row knows Transformers and PyTorch only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

VOCABULARY = 101
Heads = int | tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What the layout of one tower must say.

    Attributes:
        layers: number of layers with softmax attention.
        heads: query heads; a tuple, one per layer, where layers differ.
        kv_heads: key and value heads; ``None`` where they equal ``heads``.
    """

    layers: int
    heads: Heads
    kv_heads: Heads | None = None


@dataclass(frozen=True)
class Family:
    """A family of models, small enough to run in well under a second.

    Attributes:
        config: makes a fresh configuration (models write into theirs).
        model_class: class of transformers.
        inputs: makes the tensors that the model is called with; batch 2 where possible.
        towers: what must be captured; empty where nothing can be.
        refused: parts of module paths that must be refused by name, and a word of the reason.
        aside: eager maps that are no attention or are refused: parts of paths, or "7x14" for
            the number of queries and keys where one module makes both kinds.
        kinds: what is special: "gqa", "mla", "softcap", "sinks", "window", "position bias", ...
        change: last touch on a built model, such as a switch that only the module has.
        fast_path: PyTorch's transformer fast path is turned off by a tap: outputs to 1e-6.
        attention: implementation that the model is built with; ``None`` is the class's own choice.
    """

    name: str
    group: str
    config: Callable[[], Any]
    model_class: str
    inputs: Callable[[], dict[str, Any]]
    towers: Mapping[str, Seen] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    note: str = ""
    gain: float = 1.5
    change: Callable[[nn.Module], None] | None = None
    fast_path: bool = False
    attention: str | None = None

    def build(self, attention: str | None = None) -> nn.Module:
        """The model in eval mode, weights drawn anew; ``attention`` as in ``from_pretrained``."""
        attention = attention or self.attention
        transformers = importlib.import_module("transformers")
        cls = getattr(transformers, self.model_class)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(crc32(self.name.encode()))
            model = cls._from_config(self.config(), attn_implementation=attention)
        redraw(model, self.name, self.gain)
        if self.change is not None:
            self.change(model)
        return model.eval()


def redraw(model: nn.Module, seed: str, gain: float = 1.5) -> None:
    """Draw weights from which patterns come out far from uniform; the same for the same names.

    Matrices get standard deviation ``gain / sqrt(fan in)``, tables 1, biases and constants (zeros
    of a position table, sinks) some noise. State-space constants stay as their class made them.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or _is_state_space(name):
            continue
        generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if id(parameter) in norms:
                base = parameter if parameter.isfinite().all() else torch.ones_like(parameter)
                parameter.copy_(base + 0.1 * noise)
            elif id(parameter) in tables:
                parameter.copy_(noise)
            elif parameter.ndim >= 2:
                fan_in = parameter[0].numel() if parameter.shape[0] > 1 else parameter.shape[-1]
                parameter.copy_(noise * gain / max(fan_in, 1) ** 0.5)
            else:
                parameter.copy_(0.3 * noise)


def _is_state_space(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last in {"A_log", "D", "dt_bias", "recurrent_param", "time_decay", "time_first"}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Float32 from a normal distribution, by a generator of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(
    batch: int = 2, length: int = 11, seed: int = 1, low: int = 5, high: int = VOCABULARY
) -> Tensor:
    """Token ids ``[batch length]`` above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (batch, length), generator=generator)


def text(batch: int = 2, length: int = 11) -> dict[str, Any]:
    """Ids and a mask of ones."""
    tokens = ids(batch, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def padded_text(batch: int = 2, length: int = 11, missing: int = 3) -> dict[str, Any]:
    """As `text`, with the last row padded on the right."""
    tensors = text(batch, length)
    tensors["attention_mask"][-1, length - missing :] = 0
    return tensors


def pair(batch: int = 2, length: int = 11, target: int = 7) -> dict[str, Any]:
    """Encoder ids with a padded row, and decoder ids."""
    return padded_text(batch, length) | {"decoder_input_ids": ids(batch, target, seed=2)}


def pixels(side: int = 28, batch: int = 2, channels: int = 3) -> dict[str, Any]:
    return {"pixel_values": numbers(batch, channels, side, side, seed=3)}


def config(name: str, **values: Any) -> Callable[[], Any]:
    """A maker of configurations of class ``name``; values that are callables are called."""

    def make() -> Any:
        made = {key: value() if callable(value) else value for key, value in values.items()}
        return getattr(importlib.import_module("transformers"), name)(**made)

    return make
