"""The objects that are looked for in a text, and the words that mean them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.hallucination.plurals import plural_forms

NOT_AN_OBJECT = ""
"""Class of phrases that hold an object's word and mean something else (``train track``)."""

_WORD = re.compile(r"[^\W_]+")
_BETWEEN = re.compile(r"[\s\-_]*")
"""What may stand between the words of one name; a comma or a full stop may not."""


@dataclass(frozen=True)
class Mention:
    """One object named in a text: ``text[start:end]`` means an object of class ``kind``."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Vocabulary:
    """Classes of objects, each with the words that mean it.

    Attributes:
        synonyms: class -> names, without the class itself, which always names itself. Names of
            class `NOT_AN_OBJECT` are passed over, so that words inside them count for nothing.

    Raises:
        ValueError: a name without a word, or one that means two classes.
    """

    synonyms: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        _ = self._phrases

    @classmethod
    def of(cls, names: Iterable[str]) -> Vocabulary:
        """Every name is a class of its own.

        >>> sorted(Vocabulary.of(["fire truck", "truck"]).kinds)
        ['fire truck', 'truck']
        """
        return cls(dict.fromkeys(names, ()))

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """From a JSON file: an object whose keys are classes and whose values are lists of names.

        CHAIR's fix-ups for COCO are entries like any other: ``"elephant": ["baby elephant"]``
        (which is no baby), ``"toilet": ["toilet seat"]`` (no seat), ``"": ["train track"]`` (no
        train).

        Raises:
            ValueError: the file cannot be read or is something else.
        """
        try:
            table = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(
                f"The table of synonyms {str(path)!r} cannot be read ({why}). Give a JSON file "
                'such as {"couch": ["sofa", "settee"]}.'
            ) from error
        return cls(_checked(table, str(path)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The classes, in the order of the table."""
        return tuple(kind for kind in self.synonyms if kind != NOT_AN_OBJECT)

    def kind_of(self, name: str) -> str | None:
        """The class that a name means; None if it is in nobody's list.

        >>> Vocabulary({"couch": ("sofa",)}).kind_of("Sofas")
        'couch'
        """
        return self._phrases.get(_words(name)) or None

    def mentions(self, text: str) -> list[Mention]:
        """The objects that a text names, in order, each as often as it is named.

        Words are compared without case and accept plural forms; at every place the longest name
        wins and its words are used up.

        >>> Vocabulary.of(["dog", "hot dog"]).mentions("Two dogs eat a hot-dog.")
        [Mention(kind='dog', start=4, end=8), Mention(kind='hot dog', start=15, end=22)]
        """
        return [found for found in self._found(text) if found.kind != NOT_AN_OBJECT]

    def _found(self, text: str) -> Iterator[Mention]:
        words = list(_WORD.finditer(text))
        place = 0
        while place < len(words):
            taken = 1
            for length in range(min(self._longest, len(words) - place), 0, -1):
                run = words[place : place + length]
                kind = self._phrases.get(tuple(word[0].casefold() for word in run))
                if kind is not None and _together(text, run):
                    yield Mention(kind, run[0].start(), run[-1].end())
                    taken = length
                    break
            place += taken

    @cached_property
    def _phrases(self) -> dict[tuple[str, ...], str]:
        found: dict[tuple[str, ...], str] = {}
        # Names as they are written go before plurals made by rule: "glass" and "glasses".
        written = [(name, kind) for kind, names in self._names() for name in names]
        for name, kind in written:
            words = _words(name)
            if not words:
                raise ValueError(f"A name of {kind!r} must hold a word, got {name!r}. Correct it.")
            if found.setdefault(words, kind) != kind:
                raise ValueError(
                    f"{name!r} must mean one class, it stands under {found[words]!r} and "
                    f"{kind!r}. Remove one of them."
                )
        for name, kind in written:
            *first, last = _words(name)
            for form in plural_forms(last):
                found.setdefault((*first, form), kind)
        return found

    def _names(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for kind, names in self.synonyms.items():
            yield kind, names if kind == NOT_AN_OBJECT else (kind, *names)

    @cached_property
    def _longest(self) -> int:
        return max((len(words) for words in self._phrases), default=0)


def mentions(text: str, vocabulary: Vocabulary) -> list[Mention]:
    """The objects that a text names, in order, with their places: `Vocabulary.mentions`."""
    return vocabulary.mentions(text)


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(name))


def _together(text: str, run: list[re.Match[str]]) -> bool:
    return all(_BETWEEN.fullmatch(text, left.end(), right.start()) for left, right in pairwise(run))


def _checked(table: Any, name: str) -> dict[str, tuple[str, ...]]:
    def is_entry(names: Any) -> bool:
        return isinstance(names, list) and all(isinstance(item, str) for item in names)

    wrong = [kind for kind in table if not is_entry(table[kind])] if isinstance(table, dict) else []
    if not isinstance(table, dict) or wrong or not table:
        what = f"{wrong[0]!r} is not" if wrong else "it is not"
        raise ValueError(
            f"The table of synonyms {name!r} must be a JSON object of lists of names; {what}. "
            'Write {"couch": ["sofa", "settee"]}.'
        )
    return {kind: tuple(names) for kind, names in table.items()}
