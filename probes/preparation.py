"""Turn what a user has (text, images, examples, tensors) into a batch for a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probes.collate import Collated, has_own_positions
from probes.inputs import Batch, Example, InputError
from probes.tokens.readers import map_tokens

if TYPE_CHECKING:
    from probes.subject import Subject

_ROWS_OF = ("input_ids", "decoder_input_ids", "input_features", "input_values", "pixel_values")
"""Inputs whose first axis is the batch, the most reliable first."""


def examples_of(
    text: str | Sequence[str] | None, images: Any, image_token: str | None = None
) -> list[Example]:
    """Examples ``0, 1, ...`` from prompts and images.

    Several images belong to one prompt; several prompts take one image (or list of images) each;
    without a prompt every image is an example. A prompt is a question, to which the chat template
    applies, unless it says itself where its images stand (``image_token``).

    >>> [example.pictures for example in examples_of(["a", "b"], ["1.png", ["2.png", "3.png"]])]
    [('1.png',), ('2.png', '3.png')]
    """
    several = None if images is None else list(images) if _is_list(images) else [images]
    if text is None and not several:
        raise InputError("There is nothing to prepare. Give text, images, examples or tensors.")
    if text is None:
        return [_example(index, None, image) for index, image in enumerate(several or [])]
    if isinstance(text, str):
        return [_example(0, text, several, image_token)]
    texts = list(text)
    if several is not None and len(several) != len(texts):
        raise InputError(
            f"{len(texts)} prompts must come with {len(texts)} images (or lists of images), "
            f"got {len(several)}. Give one for each."
        )
    return [
        _example(index, one, several[index] if several is not None else None, image_token)
        for index, one in enumerate(texts)
    ]


def prepare_examples(subject: Subject, examples: Sequence[Example], **settings: Any) -> Batch:
    """The batch for some examples; ``settings`` as `Subject.prepare` takes them."""
    _require_processor(subject, examples)
    made = subject.collate(examples, **settings)
    return _batch(subject, made, tuple(examples), subject.processor)


def prepare_tensors(subject: Subject, tensors: dict[str, Any]) -> Batch:
    """The batch for the model's own tensors, whose names are checked."""
    arguments = subject.arguments
    unknown = [name for name in tensors if name not in arguments]
    if unknown and not arguments.any_position:
        raise InputError(
            f"The forward of {type(subject.model).__name__} takes no {unknown[0]!r}. "
            f"It takes: {', '.join(arguments.names)}."
        )
    tensors = _with_positions(subject, tensors)
    rows = next((tensors[name] for name in _ROWS_OF if isinstance(tensors.get(name), Tensor)), None)
    if rows is None:
        rows = next((value for value in tensors.values() if isinstance(value, Tensor)), None)
    if rows is None or rows.ndim == 0:
        raise InputError("At least one input must be a tensor with a batch axis. Pass one.")
    examples = tuple(Example(str(index)) for index in range(rows.shape[0]))
    return _batch(subject, Collated(tensors), examples, processor=None)


def _batch(
    subject: Subject, made: Collated, examples: tuple[Example, ...], processor: Any
) -> Batch:
    layout = subject.layout_for(made.tensors, len(examples))
    tokens = map_tokens(
        subject.model,
        processor,
        made.tensors,
        list(layout.towers.values()),
        tokenizer=subject.tokenizer,
        image_sizes=made.image_sizes,
        image_examples=made.image_examples,
    )
    return Batch(
        made.tensors,
        tokens,
        examples,
        made.answer_starts,
        tuple(made.image_sizes),
        tuple(made.image_examples),
    )


def _with_positions(subject: Subject, tensors: dict[str, Any]) -> dict[str, Any]:
    """Left padding without position ids would shift every real token."""
    mask = tensors.get("attention_mask")
    if (
        not isinstance(mask, Tensor)
        or mask.ndim != 2
        or bool(mask[:, 0].all())
        or "position_ids" in tensors
        or "position_ids" not in subject.arguments.names
        or not subject.generates
        or has_own_positions(subject.config)
    ):
        return tensors
    return {**tensors, "position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0)}


def _require_processor(subject: Subject, examples: Sequence[Example]) -> None:
    advice = "Pass `processor=` to `hs.load`, or the model's own tensors by name."
    if subject.tokenizer is None and subject.kind != "vision":
        raise InputError(f"{subject.processor_problem}, so text cannot be prepared. {advice}")
    pictured = any(example.pictures for example in examples)
    if subject.image_processor is not None or not (pictured or subject.kind == "vision"):
        return
    if subject.kind in ("vision", "vision-language"):
        raise InputError(f"{subject.processor_problem}, so images cannot be prepared. {advice}")
    raise InputError(
        f"{subject.name!r} is a {subject.kind} model and reads no images. Leave them out."
    )


def _example(index: int, text: str | None, images: Any, token: str | None = None) -> Example:
    pictures = () if images is None else tuple(images) if _is_list(images) else (images,)
    if text is not None and token is not None and token in text:
        return Example(str(index), text=text, images=pictures)
    return Example(str(index), question=text, images=pictures)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
