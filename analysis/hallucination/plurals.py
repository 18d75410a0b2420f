"""Plural forms of English nouns, by rule."""

from __future__ import annotations

_VOWELS = frozenset("aeiou")
_IRREGULAR = {
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
}
"""The few that captions of photographs are full of; others belong into a table of synonyms."""


def plural_forms(word: str) -> tuple[str, ...]:
    """What a lower-case noun may look like in the plural; more than one where spelling varies.

    The rules know no exceptions but a handful, so some forms are no English. That does no harm
    where forms are only looked for.

    >>> plural_forms("bus"), plural_forms("cherry"), plural_forms("knife"), plural_forms("mouse")
    (('buses',), ('cherries',), ('knifes', 'knives'), ('mice',))
    """
    if word in _IRREGULAR:
        return (_IRREGULAR[word],)
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if word.endswith("y") and word[-2:-1] not in _VOWELS:
        return (word[:-1] + "ies",)
    if word.endswith("o") and word[-2:-1] not in _VOWELS:
        return (word + "s", word + "es")
    if word.endswith("fe"):
        return (word + "s", word[:-2] + "ves")
    if word.endswith("f"):
        return (word + "s", word[:-1] + "ves")
    return (word + "s",)
