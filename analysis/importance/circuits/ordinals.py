"""Words with an order that a tokenizer knows as single tokens: numbers, months, days, letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
_RANKS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
ORDERED: Mapping[str, Sequence[str]] = {
    "numbers": [str(number) for number in range(1, 100)],
    "number words": _NUMBER_WORDS,
    "ranks": _RANKS,
    "months": _MONTHS,
    "days": _DAYS,
    "letters": [chr(code) for code in range(ord("A"), ord("Z") + 1)],
}
"""The sequences, each in its order."""
FEWEST_PAIRS = 20


@dataclass(frozen=True)
class Succession:
    """A word and the one after it, both single tokens of one sequence.

    Attributes:
        members: token ids of all words of the sequence that are single tokens.
        token, successor: places in ``members``.
    """

    sequence: str
    word: str
    members: tuple[int, ...]
    token: int
    successor: int


def successions(tokenizer: Any) -> list[Succession]:
    """Every word whose successor is a single token too, as the tokenizer writes them."""
    found: list[Succession] = []
    for name, words in ORDERED.items():
        ids = [single_token(tokenizer, word) for word in words]
        members = tuple(dict.fromkeys(i for i in ids if i is not None))
        place = {token: number for number, token in enumerate(members)}
        for word, one, following in zip(words, ids, ids[1:], strict=False):
            if one is not None and following is not None and one != following:
                found.append(Succession(name, word, members, place[one], place[following]))
    return found


def single_token(tokenizer: Any, word: str) -> int | None:
    """The id of a word that is one token, with a space before it where there is such a token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    for text in (f" {word}", word):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != unknown and tokenizer.decode(ids).strip() == word:
            return int(ids[0])
    return None
