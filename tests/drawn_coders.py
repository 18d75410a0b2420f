"""Untrained coders with every parameter drawn, and small subjects of several kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import nn

from probes.inputs import Batch
from probes.loading import load
from probes.readers import bundled_set
from probes.subject import Subject
from sae.coders.coder import Coder
from sae.coders.topk import TopK
from tests import tiny_models as tiny

IDS = torch.tensor([[1, 5, 6, 7, 8, 5, 6], [1, 9, 10, 11, 12, 9, 10]])
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def redrawn(model: nn.Module, seed: int = 3, size: float = 0.4) -> nn.Module:
    """The model with every parameter drawn anew, so that biases and norms count."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        norm = weight.ndim == 1 and name.endswith("weight")
        weight.data.copy_(1 + 0.3 * noise if norm else size * noise)
    return model


def drawn_coder(
    width: int, latents: int = 23, kind: type[Coder] = TopK, seed: int = 5, **settings: Any
) -> Coder:
    """A coder whose biases and rows are all drawn, so that none can be left out unseen."""
    if kind is TopK:
        settings = {"k": 7, **settings}
    coder = kind(width, latents, seed=seed, **settings)
    draw = torch.Generator().manual_seed(seed + 1)
    for name, value in coder.named_parameters():
        if "threshold" not in name:
            value.data += 0.3 * torch.randn(value.shape, generator=draw)
    return coder.eval().requires_grad_(False)


def gpt_oss() -> nn.Module:
    """Two layers with learned sinks, six query heads on two key heads; layer 0 has a window."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=31,
        hidden_size=36,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=61,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attention_bias=True,
        experts_implementation="eager",
    )
    return GptOssForCausalLM(config).eval()


@cache
def subject_of(name: str) -> Subject:
    """A subject by name: a bundled model, or a tiny one with all parameters drawn."""
    made: dict[str, Callable[[], nn.Module]] = {
        "gpt2": tiny.gpt2,
        "gqa": lambda: tiny.llama(attention_bias=True),
        "gpt_oss": gpt_oss,
        "t5": tiny.t5,
    }
    if name in made:
        # Small scores leave room for learned sinks.
        model = redrawn(made[name](), size=0.15 if name == "gpt_oss" else 0.4)
        return Subject(model, None if name == "t5" else tiny.tokenizer("left"))
    return load(name)


@cache
def batch_of(name: str) -> Batch:
    """Two or three examples; those of tiny language models with padding on the left."""
    subject = subject_of(name)
    if name == "t5":
        return subject.prepare(input_ids=IDS[:, :5], decoder_input_ids=IDS)
    if name in ("gpt2", "gqa", "gpt_oss"):
        return subject.prepare(input_ids=IDS, attention_mask=LEFT)
    data = {"repeat-lm": "repeats", "shapes-vit": "shapes"}.get(name, "scenes")
    return subject.prepare(examples=list(islice(bundled_set.read(data), 3)))
