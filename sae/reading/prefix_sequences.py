"""Made sequences of distinct random tokens that end in a copy of something before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from probes.tokens.text import special_ids
from probes.weights.vocabulary import input_embedding

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

SEQUENCE = 128


@dataclass(frozen=True)
class PrefixSequences:
    """Random sequences of distinct words that end in a copied prefix.

    Attributes:
        start: ids that every sequence begins with (BOS), if any.
        longest: the longest prefix that there is room for.
    """

    words: Int[Tensor, "word"]
    start: tuple[int, ...]
    tokens: int
    longest: int
    seed: int

    def batches(
        self, subject: Subject, length: int, samples: int, batch_size: int
    ) -> Iterator[tuple[Batch, Int[Tensor, "example"]]]:
        """Batches with the source's position of each example."""
        for first in range(0, samples, batch_size):
            made = [self._made(i, length) for i in range(first, min(first + batch_size, samples))]
            ids = torch.stack([row for row, _ in made])
            yield text_batch(subject, ids), torch.tensor([source for _, source in made])

    def _made(self, number: int, length: int) -> tuple[Int[Tensor, "token"], int]:
        dice = torch.Generator().manual_seed((self.seed << 32) + number)
        count = self.tokens - len(self.start)
        row = self.words[torch.randperm(len(self.words), generator=dice)[:count]]
        row = torch.cat([torch.tensor(self.start, dtype=torch.long), row])
        first, last = len(self.start) + self.longest, self.tokens - self.longest
        source = first + int(torch.randint(max(last - first, 1), (1,), generator=dice))
        if length:
            row[-length:] = row[source - length : source].clone()
        return row, source


def sequences_for(
    subject: Subject, words: Tensor | None, tokens: int | None, longest: int, seed: int
) -> PrefixSequences:
    """Sequences that a subject can read.

    Args:
        words: what they are drawn from; by default all that are not special.
        tokens: with BOS; by default 128, or as many as words and context allow.

    Raises:
        ValueError: that is too short for the longest prefix.
    """
    holder = subject.tokenizer or getattr(subject.config, "text_config", subject.config)
    bos = getattr(holder, "bos_token_id", None)
    start = (bos,) if isinstance(bos, int) else ()
    words = plain_words(subject) if words is None else words
    words = words[~torch.isin(words, torch.tensor(start, dtype=torch.long))]
    most = min(len(words) + len(start), subject.context_length or SEQUENCE)
    tokens = min(SEQUENCE, most) if tokens is None else tokens
    least = len(start) + 2 * longest + 1
    if not least <= tokens <= most:
        raise ValueError(
            f"A sequence must have between {least} tokens (for a prefix of {longest}) and {most} "
            f"(what words and context allow), got {tokens}. Give shorter `lengths` or more `words`."
        )
    return PrefixSequences(words, start, tokens, longest, seed)


def plain_words(subject: Subject) -> Int[Tensor, "word"]:
    """Every id of the vocabulary that is not special."""
    size = getattr(input_embedding(subject.model), "num_embeddings", 0)
    barred = special_ids(subject.tokenizer)
    return torch.tensor([i for i in range(size) if i not in barred], dtype=torch.long)


def text_batch(subject: Subject, ids: Int[Tensor, "example token"]) -> Batch:
    """A batch of token sequences of one length, none of it padding."""
    tensors: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in subject.arguments:
        tensors["attention_mask"] = torch.ones_like(ids)
    return subject.prepare(**tensors)


def targets(batch: Batch, source: Int[Tensor, "example"]) -> Int[Tensor, "example"]:
    """The token at each source: what an induction head copies."""
    ids = batch.tensors["input_ids"]
    return ids[torch.arange(len(ids)), source.to(ids.device)]
