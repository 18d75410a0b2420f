"""The words of an answer, as a reader counts them, and which tokens wrote each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SpacedWord:
    """What stands between two spaces.

    Attributes:
        start, end: its characters in the answer without the spaces around it.
        tokens: numbers of the tokens that wrote a character of it.
    """

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def spaced_words(text: str, spans: Sequence[tuple[int, int]]) -> list[SpacedWord]:
    """The words of a text; those that no token wrote are left out.

    Args:
        spans: from which character to which each token wrote, `analysis.vision.words.token_spans`.

    >>> [(word.text, word.tokens) for word in spaced_words(" two words", [(0, 3), (3, 4), (4, 10)])]
    [('two', (0, 1)), ('words', (2,))]
    """
    lead = len(text) - len(text.lstrip())
    found = []
    for word in re.finditer(r"\S+", text):
        mine = tuple(
            number
            for number, (start, end) in enumerate(spans)
            if max(start, word.start()) < min(end, word.end())
        )
        if mine:
            found.append(SpacedWord(word[0], word.start() - lead, word.end() - lead, mine))
    return found
