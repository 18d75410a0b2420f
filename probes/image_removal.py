"""A batch without its images: their positions deleted, or a blank or noisy image in their place."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from probes.image_stand_ins import with_other_pixels
from probes.image_tokens import image_positions
from probes.inputs import Batch, InputError
from probes.repacking import new_places, packed, padding_side, repacked
from probes.tokens.map import TowerTokens

if TYPE_CHECKING:
    from probes.subject import Subject

How = Literal["delete", "blank", "noise"]
HOWS = ("delete", "blank", "noise")
TOWER = "language"
"""The tower whose rows hold the positions of images."""

_GATHERS = re.compile(r"q_?former|resampler|perceiver")
"""Parts between the towers, which read the image for the language model."""
_INSTEAD = "Use `how='blank'` or `how='noise'`."


@dataclass(frozen=True)
class Removed:
    """A batch without its images, and where each position of the old one is now.

    Attributes:
        kept: long ``[batch position]``: the new position of each old one, -1 where it is gone.
    """

    batch: Batch
    kept: Tensor


def without_image(subject: Subject, batch: Batch, how: How = "delete", seed: int = 0) -> Removed:
    """The same prompts and answers, without what the images show.

    ``delete`` takes the images' positions out (see `probes.image_tokens`), so that the rest moves
    together, and gives no pixels: what "conditioning on text only" means in Visual-aware Head
    Divergence (He et al., 2024, arXiv 2412.13949). Text around an image, its line break included,
    all prefixes and answers stay. ``blank`` keeps every position and shows an image in the mean
    colour of the processor, ``noise`` one of seeded noise with each image's own mean and spread.

    Args:
        seed: of the noise; an example's noise depends on it and on the example's id alone.

    Raises:
        InputError: an example has no image (`example_id` names it), or the model cannot run
            without one.
        ValueError: ``how`` is none of the three.
    """
    if how not in HOWS:
        raise ValueError(f"`how` must be one of {', '.join(HOWS)}, got {how!r}.")
    _refuse_imageless(subject, batch)
    if how != "delete":
        return _same_places(batch, with_other_pixels(subject, batch, how, seed))
    source, padding = _text_only(subject, batch)
    text_only = repacked(subject, batch, TOWER, source, padding, images=False)
    bare = tuple(replace(example, image=None, images=()) for example in text_only.examples)
    return Removed(replace(text_only, examples=bare), new_places(source, padding.shape[1]))


def with_and_without_image(subject: Subject, batch: Batch) -> Removed:
    """Every prompt twice: the rows as they are, and below them the same without their images.

    One forward then runs both. Text-only rows are padded to the length of the others.

    Returns:
        The batch of twice as many rows, and ``kept [batch position]`` of the rows below.

    Raises:
        InputError: as `without_image`.
    """
    _refuse_imageless(subject, batch)
    source, padding = _text_only(subject, batch)
    length = padding.shape[1]
    room = torch.full((len(source), length - source.shape[1]), -1)
    left = padding_side(subject, padding) == "left"
    below = torch.cat([room, source] if left else [source, room], dim=1)
    above = torch.where(padding, -1, torch.arange(length))
    both = repacked(subject, batch, TOWER, torch.cat([above, below]), padding, images=True)
    return Removed(both, new_places(below, length))


def _text_only(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor]:
    """What `packed` says of the rows without their images, and where the old ones are padded."""
    tokens = _language_tokens(subject, batch)
    gone = image_positions(subject, batch, tokens)
    padding = tokens.has_role("pad").reshape(gone.shape)
    _refuse_wordless(batch, gone | padding)
    return packed(~gone & ~padding, padding_side(subject, padding)), padding


def _same_places(batch: Batch, pixels: dict[str, Tensor]) -> Removed:
    ids = batch.tensors["input_ids"]
    kept = torch.arange(ids.shape[1]).expand(ids.shape[0], -1).clone()
    return Removed(replace(batch, tensors={**batch.tensors, **pixels}), kept)


def _refuse_imageless(subject: Subject, batch: Batch) -> None:
    ids = batch.tensors.get("input_ids")
    if subject.kind != "vision-language" or not isinstance(ids, Tensor):
        raise InputError(
            f"Images can be taken from prompts of a model that reads images and text, "
            f"{subject.name!r} is a {subject.kind} model. Choose a vision-language model."
        )
    pictured = "pixel_values" in batch.tensors
    owners = set(batch.image_examples)
    for index, example in enumerate(batch.examples):
        if not pictured or (owners and index not in owners):
            raise InputError(
                f"Example {example.id!r} has no image, so there is none to take away. "
                "Leave it out, or give it one.",
                example_id=example.id,
            )


def _refuse_wordless(batch: Batch, left_out: Tensor) -> None:
    empty = left_out.all(1)
    if bool(empty.any()):
        name = batch.examples[int(empty.nonzero()[0, 0])].id
        raise InputError(
            f"Example {name!r} must have some text beside its image to be read without it, it has "
            f"none. Give it a question. {_INSTEAD}",
            example_id=name,
        )


def _language_tokens(subject: Subject, batch: Batch) -> TowerTokens:
    """The rows whose positions can be deleted.

    Raises:
        InputError: they are not known, hold no image, or the model needs its image all the same.
    """
    name, ids = type(subject.model).__name__, batch.tensors["input_ids"]
    tokens = batch.tokens.towers.get(TOWER)
    fits = tokens is not None and tokens.rows == ids.shape[0]
    if tokens is None or not fits or not bool((tokens.lengths == ids.shape[1]).all()):
        raise InputError(
            f"What each position of the text is must be known to delete those of the image, for "
            f"{name} it is not. {_INSTEAD}"
        )
    reads = _reader_of_images(subject)
    if reads:
        raise InputError(
            f"{name} reads its image by attention of its own ({reads}), not as positions of the "
            f"text, so there is nothing to delete. {_INSTEAD}"
        )
    pictured = tokens.has_role("image").reshape(ids.shape).any(1)
    if not bool(pictured.all()):
        raise InputError(
            f"No position of the text of {name} is known to be its image's, so there is nothing to "
            f"delete. {_INSTEAD}",
            example_id=batch.examples[int((~pictured).nonzero()[0, 0])].id,
        )
    parameter = inspect.signature(subject.model.forward).parameters.get("pixel_values")
    if parameter is not None and parameter.default is parameter.empty:
        raise InputError(f"{name} does not run without an image. {_INSTEAD}")
    return tokens


def _reader_of_images(subject: Subject) -> str:
    """Name of a tower that is part of the language model and reads another tower's positions."""
    for site in subject.layout.sites:
        foreign = site.cross and site.key_tower not in ("", site.site.tower, TOWER)
        if foreign and not _GATHERS.search(site.path.lower()):
            return site.site.tower
    return ""
