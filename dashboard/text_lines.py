"""Words in lines of text, as boxes of a figure: how wide each is, and where it lies."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
LETTER_PIXELS = 7.8
LETTERS = 100
"""Of a line."""
_GAP = 0.5
_LONGEST = 40


def laid_out(widths: Sequence[float], letters: int = LETTERS) -> tuple[list[float], list[int]]:
    """Left edge and line of each box, in letters; ``letters`` is how many a line has."""
    left: list[float] = []
    line: list[int] = []
    at, number = 0.0, 0
    for width in widths:
        if at and at + width > letters:
            at, number = 0.0, number + 1
        left.append(at)
        line.append(number)
        at += width + _GAP
    return left, line


def letters_of(text: str) -> int:
    """Columns that a text takes in a font of equal widths."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text[:_LONGEST])
