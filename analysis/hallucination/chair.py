"""CHAIR: which of the objects that a caption names are not in the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.hallucination.repetition import repetition
from analysis.hallucination.vocabulary import Mention, Vocabulary

Ratio = tuple[float, float]
"""Numerator and denominator of one example; over examples both are summed."""

UNITS = {
    "chair_s": "share of captions",
    "chair_i": "share of mentions",
    "recall": "share of objects",
    "objects": "mentions per caption",
    "words": "words per caption",
    "repetition": "share of 4-grams",
    "absent_partner": "share of captions",
    "present_partner": "share of captions",
    "other_errors": "share of mentions",
}


@dataclass(frozen=True)
class Judged:
    """A caption set against what is in the image.

    Attributes:
        mentions: every object it names, in order.
        hallucinated: those of them that are not there.
        there: classes of the objects in the image.
    """

    text: str
    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]
    there: frozenset[str]


def judge(text: str, objects: Iterable[str], vocabulary: Vocabulary) -> Judged:
    """Find the objects that a caption names, and those of them that are not in the image.

    Args:
        objects: what is there, by any of its names; names outside the vocabulary are passed over,
            as CHAIR does with classes that are not COCO's.
    """
    there = classes(objects, vocabulary)
    found = tuple(vocabulary.mentions(text))
    wrong = tuple(mention for mention in found if mention.kind not in there)
    return Judged(text, found, wrong, there)


def classes(objects: Iterable[str], vocabulary: Vocabulary) -> frozenset[str]:
    """The classes of objects by any of their names; names outside the vocabulary are left out."""
    found = (vocabulary.kind_of(name) for name in objects)
    return frozenset(kind for kind in found if kind is not None)


def chair_values(judged: Judged, distinct: bool = False) -> dict[str, Ratio]:
    """What one caption adds to each metric, as numerator and denominator.

    Sums over captions give (Rohrbach et al., *Object Hallucination in Image Captioning*, 2018, and
    its ``chair.py``): ``chair_s`` captions with a hallucinated mention / captions; ``chair_i``
    hallucinated mentions / mentions, each as often as it is named. Both fall when a model says
    less, so beside them: ``recall`` classes named / classes there (no part of the original),
    ``objects`` mentions / captions, ``words`` between spaces / captions, and ``repetition``, the
    mean of `repetition` over captions long enough for it.

    Args:
        distinct: count each class once per caption.
    """
    said = [mention.kind for mention in judged.mentions]
    wrong = [mention.kind for mention in judged.hallucinated]
    if distinct:
        said, wrong = list(dict.fromkeys(said)), list(dict.fromkeys(wrong))
    values: dict[str, Ratio] = {
        "chair_s": (float(bool(wrong)), 1),
        "chair_i": (len(wrong), len(said)),
        "recall": (len(judged.there.intersection(said)), len(judged.there)),
        "objects": (len(said), 1),
        "words": (len(judged.text.split()), 1),
    }
    repeated = repetition(judged.text)
    values["repetition"] = (0, 0) if repeated is None else (repeated, 1)
    return values


def partner_values(
    judged: Judged, partner: str, present: bool, vocabulary: Vocabulary, distinct: bool = False
) -> dict[str, Ratio]:
    """What a caption adds to the metrics of scenes built around a cue and its usual partner.

    ``absent_partner``: captions that name the partner / captions of scenes without it.
    ``present_partner``: the same over scenes with it. ``other_errors``: hallucinated mentions of
    anything else / mentions.
    """
    kind = vocabulary.kind_of(partner)
    named = float(any(mention.kind == kind for mention in judged.mentions))
    wrong = [mention.kind for mention in judged.hallucinated if mention.kind != kind]
    said = [mention.kind for mention in judged.mentions]
    if distinct:
        wrong, said = list(dict.fromkeys(wrong)), list(dict.fromkeys(said))
    nothing: Ratio = (0, 0)
    return {
        "absent_partner": nothing if present else (named, 1),
        "present_partner": (named, 1) if present else nothing,
        "other_errors": (len(wrong), len(said)),
    }


def chair(
    captions: Sequence[str],
    objects: Sequence[Iterable[str]],
    vocabulary: Vocabulary,
    distinct: bool = False,
) -> dict[str, float]:
    """The metrics of `chair_values` over captions; NaN where there is nothing to divide by.

    >>> chair(["A dog and a cat.", "A dog."], [["dog"], ["dog"]], Vocabulary.of(["dog", "cat"]))
    {'chair_s': 0.5, 'chair_i': 0.333..., 'recall': 1.0, 'objects': 1.5, 'words': 3.5, ...}
    """
    rows = [
        chair_values(judge(text, there, vocabulary), distinct)
        for text, there in zip(captions, objects, strict=True)
    ]
    return totals(rows)


def totals(rows: Iterable[Mapping[str, Ratio]]) -> dict[str, float]:
    """Each metric's sum of numerators over its sum of denominators; NaN where that is 0."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        for name, (top, bottom) in row.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += top
            total[1] += bottom
    return {name: top / bottom if bottom else float("nan") for name, (top, bottom) in sums.items()}
