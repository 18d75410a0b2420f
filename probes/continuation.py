"""How probable a continuation is after a beginning, teacher-forced, for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.answers import answer_start
from probes.inputs import Batch, Example, InputError
from probes.prompts import Prompt, prompt_of

if TYPE_CHECKING:
    from probes.subject import Subject


def continuation_log_probability(
    subject: Subject,
    examples: Sequence[Example],
    beginnings: Sequence[str],
    continuations: Sequence[str],
) -> Tensor:
    """Log-probability in nats that an answer which begins so goes on so.

    For each example the prompt is followed by ``beginning + continuation``, joined as they are (a
    space between them is the continuation's), and read in one forward. The logarithm of the
    continuation is the sum over its tokens of that of each after all before it. Where the tokenizer
    merges the last word of the beginning with the continuation, the sum begins at the first token
    that the continuation changes.

    Returns:
        Float32 ``[batch]``, at most 0.

    Raises:
        InputError: an example whose tokens cannot be told apart, or a model that does not give one
            distribution per token of its input.
    """
    answered = [
        replace(example, answer=beginning + continuation)
        for example, beginning, continuation in zip(
            examples, beginnings, continuations, strict=True
        )
    ]
    if getattr(subject.config, "is_encoder_decoder", False):
        raise InputError(
            f"{subject.name!r} is an encoder-decoder; the probability of a continuation is "
            "measured in models that read prompt and answer together. Leave the probe out."
        )
    batch = subject.prepare(examples=answered)
    rows = [
        _tail(subject, example, beginning, batch, index)
        for index, (example, beginning) in enumerate(zip(answered, beginnings, strict=True))
    ]
    return _log_probabilities(subject, batch, rows)


def _tail(
    subject: Subject, example: Example, beginning: str, batch: Batch, row: int
) -> tuple[int, int]:
    """Where the tokens of the continuation begin and end in the batch's row."""
    processor, tokenizer = subject.processor, subject.tokenizer
    images = len(example.pictures)
    whole = prompt_of(example, processor, tokenizer, images=images)
    begun = prompt_of(replace(example, answer=beginning), processor, tokenizer, images=images)
    ids = batch.tensors["input_ids"][row]
    prompt = Prompt(begun.answered, whole.answered, whole.special_tokens)
    start = answer_start(tokenizer, prompt, ids)
    if start < 1:
        raise InputError(
            f"Example {example.id!r}: the continuation of {beginning!r} must have tokens of its "
            "own, and none were found. Write it as the model would.",
            example_id=example.id,
        )
    mask = batch.tensors.get("attention_mask")
    stop = len(ids) if mask is None else int(mask[row].nonzero().max()) + 1
    return start, stop


def _log_probabilities(subject: Subject, batch: Batch, rows: Sequence[tuple[int, int]]) -> Tensor:
    length = batch.tensors["input_ids"].shape[1]
    first = min(start for start, _ in rows) - 1
    settings: dict[str, Any] = {}
    if "logits_to_keep" in subject.arguments.names:
        settings["logits_to_keep"] = length - first
    logits = subject.forward(batch, **settings).logits
    offset = length - logits.shape[1]
    if offset < 0 or (offset and not settings):
        raise InputError(
            f"{subject.name!r} must give one distribution per token of its input ({length}), it "
            f"gave {logits.shape[1]}. Leave the probe out."
        )
    ids = batch.tensors["input_ids"].to(logits.device)
    totals = []
    for row, (start, stop) in enumerate(rows):
        before = logits[row, start - 1 - offset : stop - 1 - offset].float()
        chosen = before.log_softmax(-1).gather(-1, ids[row, start:stop, None])
        totals.append(chosen.sum())
    return torch.stack(totals).cpu()
