"""The words of a query: numbers, names, variants, signs; and what is wrong at which place."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 2_000
"""Characters of a query."""
NUMBER, NAME, QUOTED, VARIANT, SIGN, END = "number", "name", "quoted", "variant", "sign", "end"
RELATIONS = ("<", "<=", ">", ">=", "==", "=", "!=")
_PATTERN = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[^\W\d]\w*)
    |`(?P<quoted>[^`]*)`
    |\[(?P<variant>[^\]]*)\]
    |(?P<sign><=|>=|==|!=|[<>=().@])""",
    re.VERBOSE,
)


class QueryError(ValueError):
    """A query that cannot be understood; the sentence names the place and what may stand there.

    Attributes:
        place: of the first character that is wrong, from 0.
    """

    def __init__(self, sentence: str, place: int) -> None:
        super().__init__(sentence)
        self.place = place


@dataclass(frozen=True)
class Word:
    """A word, what it is, and where it begins; ``shown`` is how it was written."""

    kind: str
    text: str
    place: int
    shown: str

    def is_sign(self, *signs: str) -> bool:
        return self.kind == SIGN and self.text in signs

    def is_name(self, *names: str) -> bool:
        return self.kind == NAME and self.text.lower() in names

    def here(self) -> str:
        """For a sentence: what stands at this place."""
        if self.kind == END:
            return "the end"
        return f"`{self.shown}` (character {self.place + 1})"


def words_of(query: str) -> list[Word]:
    """The words of a query, then one of kind ``end``.

    Raises:
        QueryError: it is too long, or holds a sign that has no meaning here.
    """
    if len(query) > LONGEST:
        raise QueryError(
            f"A query must have at most {LONGEST:,} characters, got {len(query):,}. Shorten it.",
            LONGEST,
        )
    found: list[Word] = []
    place = 0
    while place < len(query):
        match = _PATTERN.match(query, place)
        if match is None:
            raise QueryError(_why_unknown(query, place), place)
        kind = str(match.lastgroup)
        if kind != "space":
            found.append(Word(kind, match[kind], place, match[0]))
        place = match.end()
    return [*found, Word(END, "", len(query), "")]


def _why_unknown(query: str, place: int) -> str:
    sign = query[place]
    where = f"`{sign}` (character {place + 1})"
    if sign in "[`":
        return f"{where} must be closed by `{']' if sign == '[' else '`'}`, got the end."
    if sign in "+-*/%^":
        return (
            f"{where} has no meaning here: the finder compares, it does not calculate. "
            "Write a number or a measure on each side."
        )
    if sign in "&|!~":
        return f"{where} has no meaning here. Write `and`, `or`, `not`, `!=`."
    return (
        f"{where} has no meaning here. A query has measures, numbers, "
        f"{' '.join(RELATIONS)}, `and`, `or`, `not` and parentheses."
    )
