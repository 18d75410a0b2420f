"""Prompts with what was written after them, to be read in one forward (teacher forcing)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.inputs import Batch, InputError
from probes.padding import pad_id
from probes.tokens.map import ROLES, TokenMap, TowerTokens
from probes.tokens.text import token_texts

if TYPE_CHECKING:
    from probes.subject import Subject

TOWER = "language"
_TYPE_WRITTEN = {("paligemma", "token_type_ids"): 1}
"""Types of tokens and modalities are 0 for text; PaliGemma reads type 0 in both directions."""


def continued(subject: Subject, batch: Batch, ids: Tensor) -> Batch:
    """The batch with new tokens behind every prompt.

    Args:
        ids: long ``[batch token]`` as `Subject.generate` gives them. What a row holds from its
            first end-of-text token on is padding.

    New positions have the role ``generated`` and ``answer_starts`` points at the first of them
    (-1 in a row without any). They are to be the tokens that were generated: text that is decoded
    and read again may fall into other ones.

    Raises:
        InputError: prompts are padded on the right, or the tokens belong to a decoder's own row.
    """
    prompt = batch.tensors.get("input_ids")
    if not isinstance(prompt, Tensor) or "decoder_input_ids" in batch.tensors:
        raise InputError(
            "Text can be put behind a prompt where one model reads both, "
            f"{type(subject.model).__name__} reads them apart. Give answers with the data."
        )
    mask = batch.tensors.get("attention_mask", torch.ones_like(prompt))
    if bool((mask[:, -1] == 0).any()):
        raise InputError(
            "Prompts of different lengths must be padded on the left to be continued. "
            "Prepare the batch with `padding_side='left'`."
        )
    ids = ids.to(prompt.device)
    lengths = written_lengths(subject, ids)
    ids = ids[:, : max(int(lengths.max()), 1)]
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    fill = pad_id(subject.tokenizer or subject.config)
    ids = ids.masked_fill(~real, fill)
    made: dict[str, Any] = {}
    for name, value in batch.tensors.items():
        made[name] = value
        if isinstance(value, Tensor) and value.shape == prompt.shape:
            kind = _TYPE_WRITTEN.get((getattr(subject.config, "model_type", ""), name), 0)
            made[name] = torch.cat([value, torch.full_like(ids, kind).to(value.dtype)], dim=1)
    made["input_ids"] = torch.cat([prompt, ids], dim=1)
    made["attention_mask"] = torch.cat([mask, real.to(mask.dtype)], dim=1)
    if "position_ids" in made:
        known = batch.tensors["position_ids"]
        further = known[:, -1:] + torch.arange(1, ids.shape[1] + 1, device=known.device)
        made["position_ids"] = torch.cat([known, further * real.to(known)], dim=1)
    start = prompt.shape[1]
    starts = tuple(start if length else -1 for length in lengths.tolist())
    tokens = _map(subject, batch.tokens, ids.cpu(), real.cpu())
    return replace(batch, tensors=made, tokens=tokens, answer_starts=starts)


def written_lengths(subject: Subject, ids: Tensor) -> Tensor:
    """Long ``[batch]``: how many tokens stand before the first end-of-text or padding token."""
    ends = set()
    for holder in (getattr(subject.model, "generation_config", None), subject.tokenizer):
        for name in ("eos_token_id", "pad_token_id"):
            value = getattr(holder, name, None)
            ends |= set(value) if isinstance(value, (list, tuple)) else {value}
    wanted = sorted(int(end) for end in ends - {None})
    ended = torch.isin(ids, torch.tensor(wanted, dtype=torch.long, device=ids.device))
    return (~ended).long().cumprod(-1).sum(-1)


def _map(subject: Subject, tokens: TokenMap, ids: Tensor, real: Tensor) -> TokenMap:
    if TOWER not in tokens:
        return tokens
    old, count = tokens[TOWER], ids.shape[1]
    grown = old.with_generated(count)
    new = grown.position >= old.lengths.repeat_interleave(old.lengths + count)
    return TokenMap({**tokens.towers, TOWER: _filled(subject, grown, new, ids, real)})


def _filled(
    subject: Subject, grown: TowerTokens, new: Tensor, ids: Tensor, real: Tensor
) -> TowerTokens:
    column, role, words = grown.ids.clone(), grown.role.clone(), list(grown.text)
    column[new] = ids.flatten()
    role[new] = torch.where(real, ROLES.index("generated"), ROLES.index("pad")).flatten()
    if words:
        texts = token_texts(subject.tokenizer, ids.flatten())
        for place, text in zip(new.nonzero()[:, 0].tolist(), texts, strict=True):
            words[place] = text
    return replace(grown, ids=column, role=role, text=tuple(words))
