"""A second generation of the same tokens from another batch, step by step beside the first.

Contrastive and ensembled decoding compare what a model would write next after two versions of its
input. The second has its own KV cache; what is written is always decided by the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.listening import beside
from probes.padding import pad_id

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


class SecondGeneration:
    """Next-token logits of a batch after tokens that something else chooses.

    The model's own `generate` makes each step, one token at a time, so positions, masks and cache
    are those of the first generation. Edits act; what listens is paused.

    Args:
        batch: prompts of one length, padded on the left.
        generated: how many tokens may be written.
    """

    def __init__(self, subject: Subject, batch: Batch, generated: int) -> None:
        self._subject, self._batch, self._generated = subject, batch, generated
        self._tensors = dict(subject.on_device(batch).tensors)
        self._tensors.pop("position_ids", None)  # made anew by transformers
        self._pad = pad_id(subject.tokenizer or getattr(subject.model, "generation_config", None))
        self._cache: Any = None
        self._step = 0

    def logits(self, ids: Tensor) -> Tensor:
        """Float32 ``[batch word]``: the logits of what comes next.

        Args:
            ids: long ``[batch token]``: the prompt and what has been written, one token more than
                at the last call.
        """
        prompt = self._tensors["input_ids"].shape[1]
        if len(ids) != self._batch.size:
            raise ValueError(
                f"The second generation must get one row per prompt, {self._batch.size}, got "
                f"{len(ids)}. Generate greedily or by sampling, without beams and one text per "
                "prompt."
            )
        if ids.shape[1] != prompt + self._step:
            raise ValueError(
                f"The second generation must get one token more at every step, {prompt} and "
                f"{self._step} of them, got {ids.shape[1]}. Generate greedily or by sampling, "
                "without beams."
            )
        given: dict[str, Any] = self._tensors
        if self._step:
            mask = self._tensors.get("attention_mask")
            given = {"input_ids": ids, "past_key_values": self._cache}
            if mask is not None:
                given["attention_mask"] = torch.nn.functional.pad(mask, (0, self._step), value=1)
        model: Any = self._subject.model
        with beside(self._subject, self._batch, self._generated, self._step), torch.no_grad():
            made = model.generate(
                **given,
                max_new_tokens=1,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=self._pad,
            )
        self._cache, self._step = made.past_key_values, self._step + 1
        return made.logits[0].float()
