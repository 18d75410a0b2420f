"""Let a subject write: greedy unless told otherwise, in the thread that calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.inputs import Batch, InputError
from probes.listening import announced, logits_processors
from probes.padding import pad_id

if TYPE_CHECKING:
    from probes.subject import Subject


@dataclass(frozen=True)
class Generated:
    """What a subject wrote after each prompt.

    Attributes:
        ids: long ``[batch token]``, the new tokens only; rows that ended early are padded.
        texts: the same, decoded without special tokens; empty without a tokenizer.
        sequences: long ``[batch token]``, prompt included (for an encoder-decoder: start token).
    """

    ids: Tensor
    texts: tuple[str, ...]
    sequences: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def generate(subject: Subject, batch: Batch, max_new_tokens: int, **settings: Any) -> Generated:
    """Continue each example of a batch by up to ``max_new_tokens`` tokens.

    Args:
        settings: passed on to transformers' ``generate`` (``do_sample=True``, ``num_beams=4``).

    Raises:
        InputError: the model does not generate, or prompts are padded on the right.
    """
    model: Any = subject.model
    if not hasattr(model, "generate") or not getattr(model, "can_generate", lambda: True)():
        raise InputError(
            f"{subject.name!r} ({type(model).__name__}) does not generate text. "
            "Use a model with a language head."
        )
    tensors = dict(subject.on_device(batch).tensors)
    two_sided = bool(getattr(subject.config, "is_encoder_decoder", False))
    prompt = "decoder_input_ids" if two_sided else "input_ids"
    # Both are made anew for every step by transformers.
    tensors.pop("position_ids", None)
    tensors.pop("decoder_attention_mask", None)
    mask = tensors.get("attention_mask")
    if (
        not two_sided
        and isinstance(mask, Tensor)
        and mask.ndim == 2
        and bool((mask[:, -1] == 0).any())
    ):
        raise InputError(
            "Prompts of different lengths must be padded on the left to be continued. "
            "Prepare the batch with `padding_side='left'`."
        )
    settings = {"do_sample": False, "num_beams": 1, **settings}
    if not settings["do_sample"]:
        settings = {"temperature": None, "top_p": None, "top_k": None, **settings}
    settings.setdefault("pad_token_id", pad_id(subject.tokenizer or model.generation_config))
    processors = logits_processors(subject, batch)
    if processors:
        settings["logits_processor"] = [*settings.get("logits_processor", ()), *processors]
    with subject.evaluating(), torch.no_grad(), announced(subject, batch, max_new_tokens):
        made = model.generate(**tensors, max_new_tokens=max_new_tokens, **settings)
    sequences = made if isinstance(made, Tensor) else made.sequences
    start = tensors[prompt].shape[1] if prompt in tensors else int(two_sided)
    ids = sequences[:, start:]
    tokenizer = subject.tokenizer
    texts = () if tokenizer is None else tokenizer.batch_decode(ids, skip_special_tokens=True)
    return Generated(ids, tuple(texts), sequences)
