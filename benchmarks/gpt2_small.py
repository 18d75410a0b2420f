"""The model and the input of all figures: GPT-2 small in size, random weights, text-like tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOY = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 211}
_TYPES = 5000
_COPIED = 32


def make_model(
    length: int, device: str = "cpu", dtype: str = "float32", toy: bool = False, **changes: Any
) -> Any:
    """A `GPT2LMHeadModel` of 12 layers x 12 heads x 64 with SDPA, the same weights every time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**{"n_positions": max(length, 1024), **(TOY if toy else {}), **changes})
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return filled(model, device, dtype)


def filled(model: Any, device: str = "cpu", dtype: str = "float32") -> Any:
    """A model that was built on the meta device, with random weights on a real one."""
    model.to(getattr(torch, dtype)).to_empty(device=device)
    model.tie_weights()
    draw = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0.0, 0.02, generator=draw)
        else:
            weight.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return model.eval()


def like_text(length: int, vocabulary: int) -> Tensor:
    """Long ``[1 length]``: words by Zipf's law, every fourth stretch a copy of an earlier one.

    So measures of repetition (duplicate token, induction) have as much to do as in text.
    """
    draw = torch.Generator().manual_seed(1)
    frequency = 1 / torch.arange(1, min(_TYPES, vocabulary) + 1)
    ids = torch.multinomial(frequency, length, replacement=True, generator=draw)
    for start in range(3 * _COPIED, length - _COPIED + 1, 4 * _COPIED):
        source = int(torch.randint(0, start - _COPIED, (1,), generator=draw))
        ids[start : start + _COPIED] = ids[source : source + _COPIED]
    return ids[None]
