"""Where answers are in what a model reads: appended to a prompt, or given to a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probes.inputs import Example
from probes.padding import pad_id, padded
from probes.prompts import Prompt


def answer_start(tokenizer: Any, prompt: Prompt, row: Tensor) -> int:
    """Where the answer's own tokens begin in a row that processors and padding have changed.

    Returns:
        -1 where the prompt has no answer, or its tokens are not found.
    """
    if not prompt.has_answer:
        return -1
    special = prompt.special_tokens
    whole = tokenizer(prompt.answered, add_special_tokens=special)["input_ids"]
    alone = tokenizer(prompt.text, add_special_tokens=special)["input_ids"]
    shared = 0
    while shared < min(len(whole), len(alone)) and whole[shared] == alone[shared]:
        shared += 1
    tail, ids = whole[shared:], row.tolist()
    for start in range(len(ids) - len(tail), -1, -1):
        if tail and ids[start : start + len(tail)] == tail:
            return start
    return -1


def decoder_inputs(
    examples: Sequence[Example], tokenizer: Any, config: Any
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """What a decoder reads (its start token, and the answers), and where the answers begin."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = getattr(config, "bos_token_id", None)
    if start is None:
        start = pad_id(tokenizer)
    rows = [[start, *_answer_ids(tokenizer, example.answer)] for example in examples]
    length = max(len(row) for row in rows)
    fill = pad_id(tokenizer)
    ids = [padded(row, length, fill, "right") for row in rows]
    masks = [padded([1] * len(row), length, 0, "right") for row in rows]
    tensors = {
        "decoder_input_ids": torch.tensor(ids),
        "decoder_attention_mask": torch.tensor(masks),
    }
    return tensors, tuple(1 if len(row) > 1 else -1 for row in rows)


def _answer_ids(tokenizer: Any, answer: str | None) -> list[int]:
    if answer is None:
        return []
    return list(tokenizer(text_target=answer, add_special_tokens=False)["input_ids"])
