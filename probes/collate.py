"""Examples in, tensors of the model out: prompts, padding, position ids, images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from probes.answers import answer_start, decoder_inputs
from probes.inputs import Example, InputError, open_image
from probes.padding import borrowed_padding, padded_text
from probes.prompts import DESCRIBE, Prompt, image_token_of, prompt_of


@dataclass(frozen=True)
class Collated:
    """What one forward is called with, and what is needed to map its positions.

    Attributes:
        image_sizes: (width, height) of each original image, in the order of the processor.
        image_examples: index of the example that each image belongs to.
        answer_starts: per example, index of the first answer token in ``input_ids`` (in
            ``decoder_input_ids`` where the model has a decoder), -1 without an answer.
    """

    tensors: dict[str, Any]
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    image_examples: list[int] = field(default_factory=list)
    answer_starts: tuple[int, ...] = ()


def collate(
    examples: Sequence[Example],
    processor: Any,
    tokenizer: Any,
    *,
    kind: str,
    config: Any = None,
    accepts: Collection[str] | None = None,
    padding_side: str | None = None,
    max_length: int | None = None,
    chat_template: bool = True,
    answers: bool = True,
    default_question: str = DESCRIBE,
) -> Collated:
    """The model's tensors for some examples.

    Args:
        kind: kind of the subject: ``vision`` takes images only, ``language`` text only.
        config: the model's configuration: tells of a decoder and of rotary positions that the
            model computes by itself.
        accepts: names of the arguments of the model's forward; others are left out.
        padding_side: ``left`` or ``right``; default: the tokenizer's.
        max_length: most tokens that the model can read.
        answers: append the answers that the examples have (teacher forcing).

    Position ids are set whenever rows are padded on the left, except where the model has
    positions of its own (Qwen-VL).

    Raises:
        InputError: an image does not decode, or a text is empty or too long; `example_id` of the
            error names the example.
    """
    if not examples:
        raise InputError("A batch must hold at least one example. Give some data.")
    pictures = [[] if kind == "language" else _opened(example) for example in examples]
    owners = [index for index, mine in enumerate(pictures) for _ in mine]
    flat = [image for mine in pictures for image in mine]
    sizes = [image.size for image in flat]
    if kind == "vision" or tokenizer is None:
        return Collated(_kept(_pixels(processor, flat, examples), accepts), sizes, owners)
    prompts = [
        prompt_of(
            example if answers else _unanswered(example),
            processor,
            tokenizer,
            images=len(mine),
            chat_template=chat_template,
            default_question=default_question,
        )
        for example, mine in zip(examples, pictures, strict=True)
    ]
    _check_image_tokens(examples, pictures, image_token_of(processor, tokenizer))
    side = padding_side or getattr(tokenizer, "padding_side", "right")
    two_sided = bool(getattr(config, "is_encoder_decoder", False))
    texts = [prompt.text if two_sided else prompt.answered for prompt in prompts]
    if flat:
        tensors = _with_images(processor, tokenizer, texts, pictures, prompts, side)
    else:
        tensors = padded_text(tokenizer, texts, prompts, side)
    _check_lengths(examples, tensors, max_length)
    if two_sided:
        decoded, starts = decoder_inputs(examples, tokenizer, config)
        tensors.update(decoded)
    else:
        rows = zip(prompts, tensors["input_ids"], strict=True)
        starts = tuple(answer_start(tokenizer, prompt, row) for prompt, row in rows)
    # A forward that takes any keyword may pass this one on to where it does harm (ALiBi).
    named = getattr(accepts, "names", accepts)
    wanted = named is None or "position_ids" in named
    if side == "left" and wanted and not two_sided and not has_own_positions(config):
        positions = tensors["attention_mask"].long().cumsum(-1) - 1
        tensors["position_ids"] = positions.clamp_min(0)
    return Collated(_kept(tensors, accepts), sizes, owners, starts)


def has_own_positions(config: Any) -> bool:
    """Whether the model computes multimodal rotary positions (time, row, column) by itself."""
    for part in (config, getattr(config, "text_config", None)):
        for name in ("rope_parameters", "rope_scaling"):
            value = getattr(part, name, None)
            if isinstance(value, dict) and "mrope_section" in value:
                return True
    return False


def _opened(example: Example) -> list[Any]:
    try:
        return [open_image(image) for image in example.pictures]
    except InputError as error:
        raise InputError(f"Example {example.id!r}: {error}", example_id=example.id) from error


def _check_image_tokens(
    examples: Sequence[Example], pictures: list[list[Any]], token: str | None
) -> None:
    """A text that says where its images stand must say so for each of them."""
    for example, mine in zip(examples, pictures, strict=True):
        count = (example.text or "").count(token) if token else 0
        if count and count != len(mine):
            raise InputError(
                f"Example {example.id!r} has {count} {token} in its text and {len(mine)} images. "
                "Write one for each image, or none: then they stand in front.",
                example_id=example.id,
            )


def _unanswered(example: Example) -> Example:
    from dataclasses import replace

    return replace(example, answer=None)


def _pixels(processor: Any, images: list[Any], examples: Sequence[Example]) -> dict[str, Any]:
    if not images:
        raise InputError(
            f"Example {examples[0].id!r} has no image, and this model reads images only. "
            "Choose other data with `--data`.",
            example_id=examples[0].id,
        )
    maker = getattr(processor, "image_processor", processor)
    return dict(maker(images=images, return_tensors="pt"))


def _with_images(
    processor: Any,
    tokenizer: Any,
    texts: list[str],
    pictures: list[list[Any]],
    prompts: list[Prompt],
    side: str,
) -> dict[str, Any]:
    nested = image_token_of(processor, tokenizer) is not None
    images = (
        pictures if nested and all(pictures) else [image for mine in pictures for image in mine]
    )
    with borrowed_padding(tokenizer):
        made = processor(
            images=images,
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side=side,
            add_special_tokens=all(prompt.special_tokens for prompt in prompts),
        )
    tensors = dict(made)
    tensors.pop("labels", None)  # PaliGemma's, which would make the forward compute a loss
    if "attention_mask" not in tensors:
        tensors["attention_mask"] = torch.ones_like(tensors["input_ids"])
    return tensors


def _check_lengths(examples: Sequence[Example], tensors: dict[str, Any], most: int | None) -> None:
    for example, length in zip(examples, tensors["attention_mask"].sum(-1).tolist(), strict=True):
        if length == 0:
            raise InputError(
                f"Example {example.id!r} has no token. Give it some text.", example_id=example.id
            )
        if most is not None and length > most:
            raise InputError(
                f"Example {example.id!r} has {length:,} tokens, and the model reads at most "
                f"{most:,}. Shorten it or leave it out.",
                example_id=example.id,
            )


def _kept(tensors: dict[str, Any], accepts: Collection[str] | None) -> dict[str, Any]:
    if accepts is None:
        return tensors
    return {name: value for name, value in tensors.items() if name in accepts}
