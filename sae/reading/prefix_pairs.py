"""Pairs of a query and what it reads in natural text, and the prefix that they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.inputs import InputError
from sae.reading.prefix_sequences import plain_words

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

LONGEST = 9
_ROWS = 32
_OTHER_INPUTS = ("pixel_values", "inputs_embeds", "decoder_input_ids", "input_features")


@dataclass(frozen=True)
class Pair:
    """A query and the source it reads, in text.

    Attributes:
        example, query, source: batch row and positions within it.
        matched: tokens before the source that equal those up to the query, at most 9; the last
            is at the query itself.
    """

    reader: str
    example: int
    query: int
    source: int
    matched: int
    before: float


@dataclass
class PairSearch:
    """Finds pairs in a batch of text, and measures them again with another token in the prefix.

    Attributes:
        words: what new tokens are drawn from; None: every word that is not special.
        most: pairs that are taken of each reader and matched length.
        found: pairs so far, with their values after the replacement.
    """

    subject: Subject
    words: Tensor | None
    most: int
    seed: int

    def __post_init__(self) -> None:
        if self.words is None:
            self.words = plain_words(self.subject)
        self.found: list[tuple[Pair, float]] = []
        self._taken: Counter[tuple[str, int]] = Counter()
        self._dice = torch.Generator().manual_seed(self.seed)

    def begin(self, batch: Batch) -> None:
        """Look at another batch.

        Raises:
            InputError: it is not text alone.
        """
        other = next((name for name in _OTHER_INPUTS if name in batch.tensors), None)
        if "input_ids" not in batch.tensors or other:
            raise InputError(
                f"Prefixes are replaced in text alone, got an input with {other or 'no text'}. "
                "Give data without images."
            )
        self.batch, self.ids = batch, batch.tensors["input_ids"].cpu()
        tokens = batch.tokens["language"]
        shape = self.ids.shape
        self._plain = tokens.has_role("text", "system", "generated").reshape(shape)
        texts = [text.strip().lower() for text in tokens.text] if tokens.text else []
        self._words = [texts[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]

    def is_text(self, flat: int) -> bool:
        """Whether a flat position is text, and not padding or a special token."""
        return bool(self._plain.flatten()[flat])

    def pair(self, reader: str, row: int, query: int, source: int, value: float) -> Iterator[Pair]:
        """The pair, if its source and the two tokens before it are text; else nothing."""
        if source < 2 or not bool(self._plain[row, source - 2 : source + 1].all()):
            return
        matched = 0
        while matched < LONGEST and self._same(row, query - matched, source - 1 - matched):
            matched += 1
        if self._taken[reader, matched] < self.most:
            self._taken[reader, matched] += 1
            yield Pair(reader, row, query, source, matched, value)

    def replace(
        self, pairs: Sequence[Pair], measure: Callable[[list[Pair], Batch], list[float]]
    ) -> None:
        """Measure pairs again, each in a row of its own with the token two before its source new.

        Args:
            measure: gets pairs and a batch with one row for each; gives their values.
        """
        for first in range(0, len(pairs), _ROWS):
            some = list(pairs[first : first + _ROWS])
            self.found += zip(some, measure(some, self._changed(some)), strict=True)

    def _changed(self, pairs: Sequence[Pair]) -> Batch:
        index = torch.tensor([pair.example for pair in pairs])
        names = [name for name in ("input_ids", "attention_mask") if name in self.batch.tensors]
        tensors = {name: self.batch.tensors[name].cpu()[index] for name in names}
        for row, pair in enumerate(pairs):
            tensors["input_ids"][row, pair.source - 2] = self._other_word(pair)
        return self.subject.prepare(**tensors)

    def _other_word(self, pair: Pair) -> int:
        """A random word that is none of the row, so that no new match comes of it."""
        assert self.words is not None
        fresh = self.words[~torch.isin(self.words, self.ids[pair.example])]
        if not len(fresh):
            own = self.ids[pair.example, pair.source - 2]
            fresh = self.words[self.words != own]
        return int(fresh[torch.randint(len(fresh), (1,), generator=self._dice)])

    def _same(self, row: int, one: int, other: int) -> bool:
        """Whether two positions hold the same word, up to a leading space and capitals."""
        if other < 0 or not bool(self._plain[row, one] & self._plain[row, other]):
            return False
        words = self._words[row]
        if words and words[one] and words[other]:
            return words[one] == words[other]
        return bool(self.ids[row, one] == self.ids[row, other])
