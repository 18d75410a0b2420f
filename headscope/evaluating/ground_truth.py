"""What the data say of their images: objects, partners, words for them, yes/no answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from analysis.hallucination.vocabulary import Vocabulary
    from probes.inputs import Example

_UNKNOWN = (
    "What is in the images must be known: the data need `objects`, a list of names for each image. "
    "Add them, or choose other data with `--data`."
)
REFERENCES = "captions"
"""Field with captions by people; objects that they name count as there, as in CHAIR on COCO."""


def with_images(
    examples: Sequence[Example], limit: int | None
) -> tuple[list[Example], list[dict[str, str]]]:
    """Those of the first ``limit`` examples that have an image, and the others with the reason.

    Raises:
        AskedWrongly: none has.
    """
    considered = list(examples[:limit])
    chosen = [example for example in considered if example.pictures]
    if not chosen:
        raise AskedWrongly(
            f"None of the {len(considered)} examples has an image, and whether an object is "
            "hallucinated is told by images. Choose other data with `--data`."
        )
    without = [example.id for example in considered if not example.pictures]
    return chosen, [{"id": name, "reason": "it has no image"} for name in without]


def with_truth(
    examples: Sequence[Example], skipped: Sequence[dict[str, str]]
) -> tuple[list[Example], list[dict[str, str]]]:
    """Those that say what is in their image, and ``skipped`` with the others added.

    Of an image of which nothing is told, everything that is named would count as made up.

    Raises:
        AskedWrongly: none says.
    """
    known = [e for e in examples if e.objects or e.extra.get(REFERENCES)]
    if not known:
        raise AskedWrongly(_UNKNOWN)
    silent = [e.id for e in examples if not (e.objects or e.extra.get(REFERENCES))]
    reason = f"it does not say what is in its image (`objects` or `{REFERENCES}`)"
    return known, [*skipped, *({"id": name, "reason": reason} for name in silent)]


def partner_of(example: Example) -> tuple[str, bool] | None:
    """The object that usually stands beside the example's cue, and whether it is there."""
    partner, present = example.extra.get("partner"), example.extra.get("partner_present")
    if isinstance(partner, str) and isinstance(present, bool):
        return partner, present
    return None


def truth_of(example: Example) -> bool | None:
    """Whether the example is a question with the answer yes (or no); None if it is not one."""
    answer = example.answer if example.answer is not None else example.label
    said = str(answer).strip().rstrip(".").casefold()
    return {"yes": True, "no": False}.get(said) if example.prompt else None


def default_vocabulary(chosen: Sequence[Example], examples: Sequence[Example]) -> Vocabulary:
    """The objects that all data name, as objects or as partners.

    Raises:
        AskedWrongly: the chosen examples name none.
    """
    from analysis.hallucination.vocabulary import Vocabulary

    if not any(example.objects for example in chosen):
        raise AskedWrongly(_UNKNOWN)
    names = [name for example in examples for name in example.objects]
    partners = [found[0] for example in examples if (found := partner_of(example)) is not None]
    return Vocabulary.of([*names, *partners])


def objects_of(example: Example, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Classes of the objects that are there, each once, in the order of the data.

    Objects named in the captions by people, if the example has any, count as there.
    """
    references = example.extra.get(REFERENCES)
    captions = references if isinstance(references, list) else []
    named = [m.kind for text in captions for m in vocabulary.mentions(str(text))]
    kinds = [*(vocabulary.kind_of(name) for name in example.objects), *named]
    return tuple(dict.fromkeys(kind for kind in kinds if kind is not None))


def unknown_objects(examples: Sequence[Example], vocabulary: Vocabulary) -> list[str]:
    """A sentence about objects that the vocabulary does not know, if there are any.

    Raises:
        AskedWrongly: it knows none.
    """
    names = dict.fromkeys(name for example in examples for name in example.objects)
    unknown = [name for name in names if vocabulary.kind_of(name) is None]
    if not unknown:
        return []
    shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    if len(unknown) == len(names):
        raise AskedWrongly(
            f"The table of synonyms must know the data's objects, it knows none of them ({shown}). "
            "Add them to it, or leave `--synonyms` out."
        )
    return [
        f"{len(unknown)} of {len(names)} names of objects in the data are not in the table of "
        f"synonyms and count for nothing: {shown}."
    ]


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Sixteen hex digits that change when any word does."""
    import json

    from probes.readers.registry import content_digest

    table = {kind: list(names) for kind, names in vocabulary.synonyms.items()}
    return content_digest(json.dumps(table, sort_keys=True).encode())
