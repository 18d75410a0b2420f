"""The grammar of a query: from words to a tree of conditions.

query      = [ either ] [ "by" quantity [ "ascending" | "descending" ] ]
either     = both { "or" both }
both       = denied { "and" denied }
denied     = { "not" } ( "(" either ")" | comparison )
comparison = side relation side { relation side } | "tower" ( "==" | "!=" ) name
side       = number | quantity
quantity   = "layer" | "head" | measure [ "[" variant "]" ] [ "@" inputs ] [ "." column ]
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from analysis.finder.words import (
    END,
    NAME,
    NUMBER,
    QUOTED,
    RELATIONS,
    VARIANT,
    QueryError,
    Word,
    words_of,
)
from analysis.table_form import NUMBERS

PLACES = ("layer", "head")
JOINING = ("and", "or", "not", "by")
_DEEPEST = 50


@dataclass(frozen=True)
class Named:
    """A quantity as it was written: a measure, or ``layer`` or ``head`` (`is_place`).

    ``variant`` and ``inputs`` are None where they were left out.
    """

    name: str
    place: int
    is_place: bool = False
    variant: str | None = None
    inputs: str | None = None
    column: str = "value"


Side = Named | float


@dataclass(frozen=True)
class Comparison:
    """``left relation right``."""

    left: Side
    relation: str
    right: Side


@dataclass(frozen=True)
class InTower:
    """Whether a head lies in a tower, or (not ``same``) outside of it."""

    tower: str
    same: bool
    place: int


@dataclass(frozen=True)
class Not:
    inner: Condition


@dataclass(frozen=True)
class All:
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Any:
    parts: tuple[Condition, ...]


Condition = Comparison | InTower | Not | All | Any


@dataclass(frozen=True)
class Query:
    """What was asked: a condition (None: every head), what to rank by, and in which direction."""

    condition: Condition | None
    by: Named | None
    ascending: bool


def parsed(text: str) -> Query:
    """The tree of a query.

    Raises:
        QueryError: it does not follow the grammar.
    """
    return _Parser(words_of(text)).query()


def quantity(text: str) -> Named:
    """A quantity on its own, such as ``sink_rate[eps=0.3]``."""
    parser = _Parser(words_of(text))
    found = parser.quantity("the name of a measure")
    parser.end("nothing more")
    return found


class _Parser:
    def __init__(self, words: list[Word]) -> None:
        self._words = words
        self._at = 0
        self._depth = 0

    def query(self) -> Query:
        condition = None if self._word.is_name("by") or self._word.kind == END else self._either()
        by, ascending = None, False
        if self._word.is_name("by"):
            self._next()
            by = self.quantity("the name of a measure to rank by")
            if self._word.is_name("ascending", "descending"):
                ascending = self._next().text.lower() == "ascending"
        self.end("`and`, `or` or `by`" if by is None else "`ascending`, `descending` or nothing")
        return Query(condition, by, ascending)

    def end(self, instead: str) -> None:
        if self._word.kind != END:
            raise self._expected(instead)

    @property
    def _word(self) -> Word:
        return self._words[self._at]

    def _next(self) -> Word:
        word = self._word
        self._at += 1
        return word

    def _either(self) -> Condition:
        parts = [self._both()]
        while self._word.is_name("or"):
            self._next()
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _both(self) -> Condition:
        parts = [self._denied()]
        while self._word.is_name("and"):
            self._next()
            parts.append(self._denied())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _denied(self) -> Condition:
        denied = False
        while self._word.is_name("not"):
            self._next()
            denied = not denied
        inner = self._in_parentheses() if self._word.is_sign("(") else self._comparison()
        return Not(inner) if denied else inner

    def _in_parentheses(self) -> Condition:
        opened = self._next()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise QueryError(
                f"Parentheses must be nested at most {_DEEPEST} deep, got more at character "
                f"{opened.place + 1}. Leave some out.",
                opened.place,
            )
        inner = self._either()
        if not self._word.is_sign(")"):
            raise self._expected(f"`)` for the `(` of character {opened.place + 1}")
        self._next()
        self._depth -= 1
        return inner

    def _comparison(self) -> Condition:
        if self._word.is_name("tower"):
            return self._in_tower()
        first = self._word
        sides, relations = [self._side()], []
        if not self._word.is_sign(*RELATIONS):
            raise self._expected(f"a relation ({' '.join(RELATIONS)})")
        while self._word.is_sign(*RELATIONS):
            relations.append(self._next().text)
            sides.append(self._side())
        if all(isinstance(side, float) for side in sides):
            raise QueryError(
                f"The comparison at character {first.place + 1} must name a measure, `layer` or "
                "`head`, got numbers alone.",
                first.place,
            )
        pairs = zip(sides, relations, sides[1:], strict=False)
        parts = tuple(Comparison(*pair) for pair in pairs)
        return parts[0] if len(parts) == 1 else All(parts)

    def _in_tower(self) -> InTower:
        self._next()
        if not self._word.is_sign("=", "==", "!="):
            raise self._expected("`==` or `!=`")
        same = self._next().text != "!="
        if self._word.kind not in (NAME, QUOTED):
            raise self._expected("the name of a tower")
        word = self._next()
        return InTower(word.text, same, word.place)

    def _side(self) -> Side:
        if self._word.kind == NUMBER:
            word = self._next()
            number = float(word.text)
            if not isfinite(number):
                raise QueryError(f"{word.here()} must be a finite number.", word.place)
            return number
        return self.quantity("a number or the name of a measure")

    def quantity(self, expected: str) -> Named:
        word = self._word
        if word.kind not in (NAME, QUOTED) or word.is_name(*JOINING):
            raise self._expected(expected)
        if word.is_name("tower"):
            raise QueryError(
                f"{word.here()} must be compared with a tower's name: `tower == NAME`.", word.place
            )
        self._next()
        if word.is_name(*PLACES):
            return Named(word.text.lower(), word.place, is_place=True)
        variant, inputs, column = None, None, "value"
        if self._word.kind == VARIANT:
            variant = self._next().text.strip()
        if self._word.is_sign("@"):
            self._next()
            if self._word.kind not in (NAME, QUOTED):
                raise self._expected("the name of the inputs")
            inputs = self._next().text
        if self._word.is_sign("."):
            self._next()
            if not self._word.is_name(*NUMBERS):
                raise self._expected(f"one of {', '.join(NUMBERS)}")
            column = self._next().text.lower()
        return Named(word.text, word.place, False, variant, inputs, column)

    def _expected(self, what: str) -> QueryError:
        before = self._words[self._at - 1].here() if self._at else "the start"
        return QueryError(
            f"After {before} must stand {what}, got {self._word.here()}.", self._word.place
        )
