"""What a model is asked about an example: plain text, chat template, or image token and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probes.inputs import Example

DESCRIBE = "Describe the scene."
"""Asked of a language-vision model when an example is an image and nothing else."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, and the same with the answer behind it.

    Attributes:
        special_tokens: whether the tokenizer should add its own; a chat template that writes BOS
            has done so already.
    """

    text: str
    answered: str
    special_tokens: bool = True

    @property
    def has_answer(self) -> bool:
        return self.answered != self.text


def prompt_of(
    example: Example,
    processor: Any,
    tokenizer: Any,
    *,
    images: int = 0,
    chat_template: bool = True,
    default_question: str = DESCRIBE,
) -> Prompt:
    """The prompt for one example with ``images`` pictures.

    A text without pictures is passed as it is, and so is a text that holds the image token
    already. Otherwise the chat template of the processor or tokenizer is used. Without one, image
    tokens and a line break are put in front of the text, unless the processor adds them by itself.
    """
    asked = example.prompt if example.prompt is not None else default_question if images else ""
    token = image_token_of(processor, tokenizer)
    raw = example.text is not None and (images == 0 or (token is not None and token in asked))
    template = _template_holder(processor, tokenizer) if chat_template else None
    if raw or (images and token is None) or not asked:
        text = asked
    elif template is not None:
        text = _from_template(template, asked, images, tokenizer)
    elif images and not _adds_image_tokens(processor):
        text = f"{(token or '') * images}\n{asked}"
    else:
        text = asked
    bos = getattr(tokenizer, "bos_token", None)
    return Prompt(text, with_answer(text, example.answer), not (bos and text.startswith(bos)))


def image_token_of(processor: Any, tokenizer: Any) -> str | None:
    """How the image token is written, ``None`` for models that read images apart from text."""
    for holder in (processor, tokenizer):
        token = getattr(holder, "image_token", None)
        if token is not None:
            return str(token)
    return None


def _template_holder(processor: Any, tokenizer: Any) -> Any:
    for holder in (processor, tokenizer):
        if getattr(holder, "chat_template", None) and hasattr(holder, "apply_chat_template"):
            return holder
    return None


def _from_template(holder: Any, asked: str, images: int, tokenizer: Any) -> str:
    content: Any = asked
    if images:
        pictures: Sequence[dict[str, str]] = [{"type": "image"}] * images
        content = [*pictures, {"type": "text", "text": asked}]
    elif holder is not tokenizer:
        content = [{"type": "text", "text": asked}]
    message = [{"role": "user", "content": content}]
    return str(holder.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


def _adds_image_tokens(processor: Any) -> bool:
    # BLIP-2 and its kin put their query tokens in front of the text themselves.
    return getattr(processor, "num_query_tokens", None) is not None


def with_answer(text: str, answer: str | None) -> str:
    """The text with an answer behind it, a space between them unless there is one.

    >>> with_answer("the cat", "sat")
    'the cat sat'
    """
    if answer is None:
        return text
    gap = "" if not text or text[-1].isspace() or answer[:1].isspace() else " "
    return f"{text}{gap}{answer}"
