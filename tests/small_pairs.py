"""Pairs of short texts for the tiny models, whose last words agree in both halves."""

from __future__ import annotations

from typing import Any

from probes.inputs import Example
from probes.subject import Subject
from tests import tiny_models as tiny

TEXTS = (
    ("p0", "a b c d e", "a b f d e", "g", "h"),
    ("p1", "c the cat sat on a", "c the mat sat on a", "b", "mat"),
    ("p2", "j i h", "j f h", "a", "cat"),
    ("p3", "d c b a e", "d c j i e", "f", "."),
    ("p4", "the cat sat on the", "the mat sat on the", "mat", "?"),
)


def examples(count: int = len(TEXTS)) -> list[Example]:
    """Lengths 6, 7, 4, 6, 6 with BOS; no two pairs alike."""
    return [
        Example(name, text=text, corrupt=corrupt, correct=correct, wrong=wrong)
        for name, text, corrupt, correct, wrong in TEXTS[:count]
    ]


def llama(side: str = "left", **changes: Any) -> Subject:
    """Three layers, six query heads on two key heads, weights large enough to matter."""
    return Subject(tiny.sharp(tiny.llama(**changes)), tiny.tokenizer(side))


def gpt2(side: str = "left", **changes: Any) -> Subject:
    """Two layers, three heads; queries, keys and values from one fused projection."""
    return Subject(tiny.sharp(tiny.gpt2(**changes)), tiny.tokenizer(side))
