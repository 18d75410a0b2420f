"""Token sequences made for a model, not taken from data: ordinary tokens, drawn by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.inputs import Example
from probes.tokens.text import special_ids, token_texts
from probes.weights.vocabulary import input_embedding

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

MOST_IDS = 2_000
"""Vocabularies list what is frequent first (merges by rank, pieces by likelihood)."""
TOWER = "language"
_CHUNK = 4_096
_NO_WORDS = ("<0x", "[unused", "<unused", "\ufffd")


def refuse_no_decoder(subject: Subject, study: str) -> None:
    """Nothing, if the subject has a tower that reads text from left to right.

    Raises:
        ValueError: it has none; the sentence names the study.
    """
    tower = subject.towers.get(TOWER)
    if tower is None or not all(site.causal for site in tower.sites.values()):
        raise ValueError(
            f"Study {study!r} must have a language tower that reads from left to right, "
            f"{subject.name!r} has {', '.join(subject.towers)}. Leave it out of `--measures`."
        )
    if subject.kind == "vision-language" and not subject.generates:
        raise ValueError(
            f"Study {study!r} must run on text alone, and {subject.name!r} reads text only beside "
            "an image. Leave it out of `--measures`."
        )


def ordinary_ids(subject: Subject, most: int = MOST_IDS) -> Tensor:
    """Long ``[id]``, ascending: the first ``most`` ids of the vocabulary that are plain words.

    A word holds a letter and is no special token, no byte and no placeholder. Without a tokenizer,
    every id counts that the configuration does not name (``eos_token_id`` and so on).

    Raises:
        ValueError: the size of the vocabulary cannot be told.
    """
    tokenizer, size = subject.tokenizer, _vocabulary_size(subject)
    barred: set[int | None] = {*special_ids(tokenizer), *_named_in(subject.config)}
    barred.add(getattr(tokenizer, "unk_token_id", None))
    found: list[int] = []
    for start in range(0, size, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, size))
        texts: Sequence[str] = token_texts(tokenizer, ids) or ["a"] * len(ids)
        found += [
            index
            for index, text in zip(ids.tolist(), texts, strict=True)
            if index not in barred and _is_word(text)
        ]
        if len(found) >= most:
            break
    return torch.tensor(found[:most], dtype=torch.long)


def beginning(subject: Subject) -> list[int]:
    """The BOS id where the tokenizer (or without one the configuration) has one, else nothing.

    Heads that rest on the first token would otherwise rest on a word of the probe.
    """
    holder = subject.tokenizer
    if holder is None:
        holder = getattr(subject.config, "text_config", None) or subject.config
    found = getattr(holder, "bos_token_id", None)
    return [found] if isinstance(found, int) else []


def drawn(ids: Tensor, count: int, *names: object) -> Tensor:
    """Long ``[count]``: distinct ids; the same names give the same draw on every machine.

    >>> bool((drawn(torch.arange(9), 4, "seed", 0) == drawn(torch.arange(9), 4, "seed", 0)).all())
    True
    """
    return ids[torch.randperm(len(ids), generator=generator_of(*names))[:count]]


def generator_of(*names: object) -> torch.Generator:
    """A generator whose state depends on the names alone."""
    text = "\0".join(str(name) for name in names).encode("utf-8", "surrogatepass")
    seed = int.from_bytes(blake2b(text, digest_size=7, person=b"probe").digest(), "little")
    return torch.Generator().manual_seed(seed)


def prepared(subject: Subject, rows: Sequence[Sequence[int]], names: Iterable[str]) -> Batch:
    """A batch of token sequences of one length, its examples called by name."""
    tensors: dict[str, Any] = {"input_ids": torch.tensor(rows, dtype=torch.long)}
    if "attention_mask" in subject.arguments:
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    batch = subject.prepare(**tensors)
    return replace(batch, examples=tuple(Example(name) for name in names))


def _is_word(text: str) -> bool:
    plain = text.strip()
    return any(c.isalpha() for c in plain) and not any(mark in plain for mark in _NO_WORDS)


def _vocabulary_size(subject: Subject) -> int:
    sizes = [getattr(input_embedding(subject.model), "num_embeddings", None)]
    config = getattr(subject.config, "text_config", None) or subject.config
    sizes += [getattr(config, "vocab_size", None), getattr(config, "d_vocab", None)]
    if subject.tokenizer is not None:
        sizes.append(len(subject.tokenizer))
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    if not known:
        raise ValueError(
            f"The size of the vocabulary of {subject.name!r} must be known to draw tokens from "
            "it. Pass `processor=` with a tokenizer to `hs.load`."
        )
    return min(known)


def _named_in(config: Any) -> set[int]:
    found: set[int] = set()
    for part in (config, getattr(config, "text_config", None)):
        for name, value in vars(part).items() if part is not None else ():
            if name.endswith(("_token_id", "_token_index")):
                several = value if isinstance(value, (list, tuple)) else [value]
                found.update(item for item in several if isinstance(item, int))
    return found
