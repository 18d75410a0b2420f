"""What an edit that works on images needs: a model that sees, and an image in every example."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probes.depth import writing_tower
from probes.inputs import InputError

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.layout import Tower
    from probes.subject import Subject

VISION = "vision"
"""The tower that runs the patches of an image."""


def reading_tower(subject: Subject, label: str) -> Tower:
    """The tower that reads the prompt and its image.

    Raises:
        ValueError: the model reads no images or writes no text.
    """
    tower = writing_tower(subject)
    if subject.kind != "vision-language":
        raise ValueError(
            f"{label} works on the image of a prompt, and {subject.name!r} is a {subject.kind} "
            "model, which reads none. Choose a vision-language model."
        )
    return tower


def seeing_tower(subject: Subject, label: str) -> Tower:
    """The tower that runs the patches.

    Raises:
        ValueError: the model has none with softmax attention.
    """
    if VISION not in subject.towers:
        raise ValueError(
            f"{label} reads the attention of a vision tower, and {subject.name!r} has only "
            f"{', '.join(subject.towers)}. Choose a model with a vision transformer."
        )
    return subject.towers[VISION]


def refuse_imageless(batch: Batch, tower: str, label: str) -> None:
    """Raise where an example has no image position in a tower.

    Raises:
        InputError: naming the example.
    """
    tokens = batch.tokens.towers.get(tower)
    if tokens is None:
        raise InputError(
            f"{label} must know which positions of {tower} are the image's, and for this batch "
            "nothing is known. Prepare it with `subject.prepare` from text and images."
        )
    pictured = tokens.example[tokens.has_role("image")]
    missing = set(range(batch.size)) - set(pictured.tolist())
    if missing:
        example = batch.examples[min(missing)]
        raise InputError(
            f"{label} works on an image, and example {example.id!r} has no image among the "
            f"positions of {tower}. Leave it out, or give it one.",
            example_id=example.id,
        )
