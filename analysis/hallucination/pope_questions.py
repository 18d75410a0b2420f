"""POPE's questions: is there an X in the image, for objects that are there and that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

SPLITS = ("random", "popular", "adversarial")
PER_IMAGE = 3
TEMPLATE = "Is there {a} {object} in the image?"


@dataclass(frozen=True)
class PopeQuestion:
    """One question about one image.

    Attributes:
        image_id: id of the example.
        split: how its negatives are chosen; positives are the same in all splits.
        kind: class of the object that is asked for.
        there: the truth.
    """

    image_id: str
    split: str
    kind: str
    there: bool


@dataclass(frozen=True)
class Poll:
    """All questions, and how often a split could not be had as it is defined.

    Attributes:
        fallbacks: split -> negatives drawn at random, because no absent class was left that ever
            stood beside the positive.
        short: images with fewer absent classes than objects asked for, so fewer negatives.
    """

    questions: tuple[PopeQuestion, ...]
    fallbacks: Mapping[str, int]
    short: int


@dataclass(frozen=True)
class ObjectStatistics:
    """How often classes occur, and together.

    Attributes:
        popularity: every class, the most frequent first; among equals by name.
        together: class -> classes it was seen with, the most frequent first.
    """

    popularity: tuple[str, ...]
    together: Mapping[str, tuple[str, ...]]


def object_statistics(images: Mapping[str, Sequence[str]]) -> ObjectStatistics:
    """Statistics of the data's own objects: image -> its classes, each once."""
    counts: Counter[str] = Counter()
    together: dict[str, Counter[str]] = {}
    for kinds in images.values():
        counts.update(set(kinds))
        for kind in kinds:
            together.setdefault(kind, Counter()).update(set(kinds) - {kind})
    return ObjectStatistics(
        _by_frequency(counts),
        {kind: _by_frequency(beside) for kind, beside in together.items()},
    )


def pope_questions(
    images: Mapping[str, Sequence[str]],
    statistics: ObjectStatistics,
    per_image: int = PER_IMAGE,
    seed: int = 0,
) -> Poll:
    """For each image, as many questions about absent objects as about present ones, three times.

    Li et al., *Evaluating Object Hallucination in Large Vision-Language Models* (2023), section 5,
    and ``utils.py`` of its code. Positives are the first ``per_image`` classes of the image (all,
    if there are fewer; the paper leaves such images out). For each, one negative that is not in the
    image and was not asked before: ``random`` any, ``popular`` the most frequent one,
    ``adversarial`` the one seen most often beside the positive, or any where none is left.

    Args:
        images: id -> its classes, in the order of the data, each once.
        statistics: `object_statistics` of all data, of which ``images`` may be a part.
        seed: of the random negatives, which depend on it and the image's id alone.
    """
    questions: list[PopeQuestion] = []
    fallbacks: Counter[str] = Counter()
    short = 0
    for image_id, kinds in images.items():
        asked = list(kinds)[:per_image]
        absent = [kind for kind in statistics.popularity if kind not in set(kinds)]
        short += len(absent) < len(asked)
        for split in SPLITS:
            chosen, fell_back = _negatives(asked, absent, split, statistics, image_id, seed)
            fallbacks[split] += fell_back
            questions += [PopeQuestion(image_id, split, kind, True) for kind in asked]
            questions += [PopeQuestion(image_id, split, kind, False) for kind in chosen]
    return Poll(tuple(questions), fallbacks, short)


def wording(kind: str, template: str = TEMPLATE) -> str:
    """The question about a class; ``{a}`` becomes the article that fits.

    (The published questions have "imange" for objects that begin with a vowel.)

    >>> wording("orange")
    'Is there an orange in the image?'

    Raises:
        ValueError: the template has no ``{object}``, or holds other braces.
    """
    article = "an" if kind[:1].lower() in ("a", "e", "i", "o", "u") else "a"
    try:
        text = template.format(object=kind, a=article)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(_TEMPLATE_SENTENCE.format(template)) from error
    if "{object}" not in template:
        raise ValueError(_TEMPLATE_SENTENCE.format(template))
    return text


_TEMPLATE_SENTENCE = (
    "A question for POPE must hold {{object}}, and may hold {{a}}, got {!r}. Write for example "
    "'Is there {{a}} {{object}} in the image?'."
)


def _negatives(
    positives: Sequence[str],
    absent: Sequence[str],
    split: str,
    statistics: ObjectStatistics,
    image_id: str,
    seed: int,
) -> tuple[list[str], int]:
    """Absent classes, one for each positive while there are any; how many were a fallback."""
    rng = _generator(seed, image_id, split)
    chosen: list[str] = []
    fell_back = 0
    for positive in positives:
        left = [kind for kind in absent if kind not in chosen]
        if not left:
            break
        ranked = _ranked(split, positive, left, statistics)
        if ranked:
            chosen.append(ranked[0])
        else:
            fell_back += split != "random"
            chosen.append(left[int(rng.integers(len(left)))])
    return chosen, fell_back


def _ranked(
    split: str, positive: str, left: Sequence[str], statistics: ObjectStatistics
) -> Sequence[str]:
    by_split: dict[str, Callable[[], Sequence[str]]] = {
        "random": lambda: (),
        "popular": lambda: left,
        "adversarial": lambda: [k for k in statistics.together.get(positive, ()) if k in left],
    }
    return by_split[split]()


def _by_frequency(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(counts, key=lambda kind: (-counts[kind], kind)))


def _generator(seed: int, image_id: str, split: str) -> np.random.Generator:
    text = f"{seed}\0{split}\0{image_id}".encode("utf-8", "surrogatepass")
    key = int.from_bytes(blake2b(text, digest_size=16, person=b"pope").digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
