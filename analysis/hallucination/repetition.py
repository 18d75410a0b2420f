"""How much a text repeats itself: the sign of a model that an intervention has broken."""

from __future__ import annotations

GRAM = 4


def repetition(text: str, gram: int = GRAM) -> float | None:
    """Share of a text's n-grams that stood in it before, 0 to 1; None if it has none.

    ``seq-rep-n = 1 - |distinct n-grams| / |n-grams|`` over words between spaces: Welleck et al.,
    *Neural Text Generation with Unlikelihood Training* (2020), section 6.1, who count tokens.

    >>> repetition("a cat sat on a cat sat on a mat")
    0.2857142857142857
    """
    words = text.split()
    grams = [tuple(words[start : start + gram]) for start in range(len(words) - gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
