"""What a model is and reads: its kind, its context, and the names of its forward's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

KINDS = ("language", "encoder-decoder", "vision", "vision-language", "audio", "module")
"""``module`` is a model of which nothing is known but its tensors."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_UNLIMITED = 10**6
"""Tokenizers without a limit say 10**30."""
_PASSED_ON_ASKING = ("token_type_ids", "mm_token_type_ids", "labels")
"""Made by some processors whatever the model; harmful as an unknown keyword."""


class ForwardArguments:
    """The names that a model's forward takes: a collection in which ``in`` knows ``**kwargs``.

    Args:
        aliases: our name of a tensor -> the model's own (timm calls its pixels ``x``).
    """

    def __init__(self, model: nn.Module, aliases: Mapping[str, str]) -> None:
        parameters = list(inspect.signature(model.forward).parameters.values())
        self.names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.any_position = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.aliases = dict(aliases)

    def __contains__(self, name: object) -> bool:
        if name in self.names or name in self.aliases:
            return True
        return self.any_keyword and name not in _PASSED_ON_ASKING

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def named(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors under the model's own names."""
        return {self.aliases.get(name, name): value for name, value in tensors.items()}


def kind_of(model: nn.Module, processor: Any = None) -> str:
    """One of `KINDS`, read off the forward's arguments and the configuration.

    >>> kind_of(nn.Linear(2, 3))
    'module'
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        return "language" if hasattr(processor, "convert_ids_to_tokens") else "module"
    names = set(inspect.signature(model.forward).parameters)
    two_sided = bool(getattr(config, "is_encoder_decoder", False))
    if {"input_features", "input_values"} & names:
        return "audio"
    pixels = "pixel_values" in names
    text = bool({"input_ids", "decoder_input_ids"} & names)
    if pixels and text:
        return "vision-language"
    if pixels:
        return "vision"
    return "encoder-decoder" if two_sided else "language"


def context_length_of(config: Any, tokenizer: Any) -> int | None:
    """Most tokens of text that the model can read; ``None`` where no limit is known."""
    text = getattr(config, "text_config", None) or config
    found = [getattr(text, name, None) for name in _LENGTHS]
    limits = [value for value in found if isinstance(value, int) and value > 0][:1]
    tokens = getattr(tokenizer, "model_max_length", None)
    if isinstance(tokens, int) and 0 < tokens < _UNLIMITED:
        limits.append(tokens)
    return min(limits, default=None)
