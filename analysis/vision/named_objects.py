"""Which tokens of an answer name which object that is in the image, and where that object is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.hallucination.vocabulary import Vocabulary
from analysis.vision.asked import holds_spaces, joined

if TYPE_CHECKING:
    from analysis.vision.prompt_parts import PromptParts
    from probes.inputs import Batch, Example
    from probes.tokens.map import TowerTokens

Box = tuple[float, ...]


@dataclass(frozen=True)
class NamedObject:
    """One mention of an object that is in the image.

    Attributes:
        row: of the tower's map.
        first, last: flat positions of the first and last token that name it.
        boxes: of all objects of that name.
    """

    row: int
    kind: str
    first: int
    last: int
    boxes: tuple[Box, ...]


def has_boxes(example: Example) -> bool:
    """Whether it is known where the objects of an example's one image are."""
    return (
        len(example.pictures) == 1
        and bool(example.objects)
        and len(example.boxes) == len(example.objects)
    )


def named_objects(tokens: TowerTokens, parts: PromptParts, batch: Batch) -> list[NamedObject]:
    """Every mention, in the outputs of all rows, of an object whose box is known.

    Objects that are named and not there have no box and are left out. Nothing is found where the
    text of the tokens is not known (tokens that are just being generated).
    """
    found = []
    for row, example in enumerate(batch.examples):
        if has_boxes(example) and tokens.rows == batch.size:
            vocabulary = Vocabulary.of(dict.fromkeys(example.objects))
            by_kind: dict[str, list[Box]] = {}
            for name, box in zip(example.objects, example.boxes, strict=True):
                by_kind.setdefault(vocabulary.kind_of(name) or name, []).append(tuple(box))
            for kind, positions in mentions_in(tokens, parts, row, vocabulary):
                boxes = tuple(by_kind[kind])
                found.append(NamedObject(row, kind, positions[0], positions[-1], boxes))
    return found


def mentions_in(
    tokens: TowerTokens, parts: PromptParts, row: int, vocabulary: Vocabulary
) -> Iterator[tuple[str, list[int]]]:
    """Every mention of an object in the output of a row: its class and its flat positions."""
    if not tokens.text:
        return
    begin, end = int(tokens.starts[row]), int(tokens.starts[row + 1])
    positions = ((parts.output[begin:end]).nonzero()[:, 0] + begin).tolist()
    words = [tokens.text[position] for position in positions]
    text, spans = joined(words, holds_spaces(tokens.text[begin:end]))
    for mention in vocabulary.mentions(text):
        mine = [
            position
            for position, (start, stop) in zip(positions, spans, strict=True)
            if max(start, mention.start) < min(stop, mention.end)
        ]
        if mine:
            yield mention.kind, mine
