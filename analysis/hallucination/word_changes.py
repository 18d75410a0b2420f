"""Two answers side by side: which words differ, and which are of objects that are not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\S+")
Spans = Iterable[Sequence[int]]


@dataclass(frozen=True)
class SaidWord:
    """What stands between two spaces.

    Attributes:
        changed: it does not stand there in the other answer.
        wrong: it is of an object that is not in the image.
    """

    text: str
    changed: bool
    wrong: bool


def word_changes(
    before: str, after: str, wrong_before: Spans = (), wrong_after: Spans = ()
) -> tuple[list[SaidWord], list[SaidWord]]:
    """The words of both answers; those are marked that the other does not have in that place.

    Args:
        wrong_before, wrong_after: from which character to which an object is named that is not
            there.

    >>> one, other = word_changes("a red star .", "a blue star .", [(2, 10)])
    >>> [(word.text, word.changed, word.wrong) for word in one]
    [('a', False, False), ('red', True, True), ('star', False, True), ('.', False, False)]
    >>> [word.text for word in other if word.changed]
    ['blue']
    """
    words = [list(_WORD.finditer(text)) for text in (before, after)]
    same: tuple[set[int], set[int]] = (set(), set())
    matcher = SequenceMatcher(
        None, [word[0] for word in words[0]], [word[0] for word in words[1]], autojunk=False
    )
    for block in matcher.get_matching_blocks():
        same[0].update(range(block.a, block.a + block.size))
        same[1].update(range(block.b, block.b + block.size))
    spans = [list(wrong_before), list(wrong_after)]
    one, other = (
        [
            SaidWord(
                word[0],
                number not in same[side],
                any(max(start, word.start()) < min(end, word.end()) for start, end in spans[side]),
            )
            for number, word in enumerate(words[side])
        ]
        for side in (0, 1)
    )
    return one, other
