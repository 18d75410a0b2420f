"""Rows of tokens of one length: which id pads, and on which side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from probes.prompts import Prompt


def padded_text(
    tokenizer: Any, texts: Sequence[str], prompts: Sequence[Prompt], side: str
) -> dict[str, Tensor]:
    """Ids, mask and token types of texts, without asking the tokenizer to be able to pad."""
    rows = [
        tokenizer(text, add_special_tokens=prompt.special_tokens)
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    fill = {"input_ids": pad_id(tokenizer), "attention_mask": 0, "token_type_ids": 0}
    length = max(len(row["input_ids"]) for row in rows)
    tensors = {}
    for name, empty in fill.items():
        if any(name not in row for row in rows):
            continue
        tensors[name] = torch.tensor([padded(row[name], length, empty, side) for row in rows])
    if "attention_mask" not in tensors:
        masks = [[1] * len(row["input_ids"]) for row in rows]
        tensors["attention_mask"] = torch.tensor([padded(m, length, 0, side) for m in masks])
    tensors["input_ids"] = tensors["input_ids"].long()
    return tensors


def pad_id(tokenizer: Any) -> int:
    """Id to pad with: the tokenizer's, else EOS, else 0; masked, so that none of it is read."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0


def padded(values: Sequence[int], length: int, fill: int, side: str) -> list[int]:
    """The values with ``fill`` on the ``left`` or ``right``, up to ``length``.

    >>> padded([7, 8], 4, 0, "left")
    [0, 0, 7, 8]
    """
    rest = [fill] * (length - len(values))
    return rest + list(values) if side == "left" else list(values) + rest


@contextmanager
def borrowed_padding(tokenizer: Any) -> Iterator[None]:
    """Within, a tokenizer without a padding token pads with EOS; afterwards it is as before."""
    if getattr(tokenizer, "pad_token", None) is not None:
        yield
        return
    tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.pad_token = None
