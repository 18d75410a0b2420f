"""The first token of an answer, as the tokenizer writes that answer behind its own prompt."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probes.inputs import Example, InputError
from probes.prompts import prompt_of, with_answer

if TYPE_CHECKING:
    from probes.subject import Subject


def first_tokens(subject: Subject, example: Example) -> tuple[int, int, int]:
    """Ids of the first tokens of `correct` and `wrong`, and of the token that they follow.

    Each word is written behind the prompt (and the answer so far), with a space unless there is
    one, and tokenized together with it: whether a word's first token carries the space is the
    tokenizer's own decision. In an encoder-decoder both are words of the decoder.

    Raises:
        InputError: a word is missing, empty or not in the vocabulary, or it does not leave the
            prompt's tokens as they were; both words begin with the same token. The sentence names
            the example.
    """
    correct, wrong = _word(example, "correct"), _word(example, "wrong")
    before = _tokens(subject, example, None)
    ids = []
    for name, word in (("correct", correct), ("wrong", wrong)):
        after = _tokens(subject, example, word)
        if after[: len(before)] != before or len(after) == len(before):
            raise _refused(
                example,
                f"the tokens of its prompt must stay as they are when `{name}` follows, and "
                f"{word!r} changes the last ones. Leave out the space at the end of the prompt, or "
                "choose another word",
            )
        new = after[len(before) :]
        if not _reads_as(subject.tokenizer, new, word):
            raise _refused(
                example,
                f"`{name}` must be in the model's vocabulary, got {word!r}, which reads "
                f"{subject.tokenizer.decode(new)!r}. Choose another word",
            )
        ids.append(new[0])
    if ids[0] == ids[1]:
        token = subject.tokenizer.convert_ids_to_tokens(ids[0])
        raise _refused(
            example,
            f"`correct` and `wrong` must begin with different tokens, got {correct!r} and {wrong!r}"
            f", which both begin with {token!r}. Lengthen the prompt up to where they differ",
        )
    return ids[0], ids[1], before[-1] if before else -1


def _word(example: Example, name: str) -> str:
    word = getattr(example, name)
    if not isinstance(word, str) or not word.strip():
        raise _refused(example, f"`{name}` must be a word for a model of language, got {word!r}")
    return word


def _tokens(subject: Subject, example: Example, word: str | None) -> list[int]:
    """The prompt and the answer so far (for a decoder: the answer), and a word behind them."""
    tokenizer = subject.tokenizer
    if getattr(subject.config, "is_encoder_decoder", False):
        said = with_answer(example.answer or "", word)
        return list(tokenizer(text_target=said, add_special_tokens=False)["input_ids"])
    prompt = prompt_of(example, subject.processor, tokenizer, images=len(example.pictures))
    text = with_answer(prompt.answered, word)
    return list(tokenizer(text, add_special_tokens=prompt.special_tokens)["input_ids"])


def _reads_as(tokenizer: Any, ids: list[int], word: str) -> bool:
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids:
        return False
    # Tokenizers without an unknown token may put any other word in its place.
    return _plain(tokenizer.decode(ids)) == _plain(word)


def _plain(text: str) -> str:
    """Letters alone: spaces, case and accents are what tokenizers may drop."""
    whole = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in whole if not c.isspace() and not unicodedata.combining(c))


def class_index(subject: Subject, example: Example, name: str) -> int:
    """The class that `correct` or `wrong` names, by number or by the model's own word for it.

    Raises:
        InputError: it is none of the model's classes.
    """
    value = getattr(example, name)
    names = getattr(subject.config, "id2label", None) or {}
    by_word = {str(word): int(index) for index, word in names.items()}
    found = by_word.get(value) if isinstance(value, str) else value
    if found is None and isinstance(value, str) and value.isdigit():
        found = int(value)
    if found is None or found < 0 or (by_word and found >= len(by_word)):
        known = ", ".join(list(by_word)[:6]) or "numbers"
        raise _refused(
            example, f"`{name}` must be a class of the model ({known} ...), got {value!r}"
        )
    return found


def classes(subject: Subject, example: Example) -> tuple[int, int]:
    """The classes that `correct` and `wrong` name.

    Raises:
        InputError: one is none of the model's classes, or both are the same.
    """
    correct, wrong = (class_index(subject, example, name) for name in ("correct", "wrong"))
    if correct == wrong:
        raise _refused(
            example, f"`correct` and `wrong` must be different classes, got {correct} for both"
        )
    return correct, wrong


def corrupted(example: Example) -> Example:
    """The other half of a pair: the example with its text, or its image, exchanged.

    Raises:
        InputError: there is no `corrupt`, or it is an image where there is none to exchange.
    """
    given = example.corrupt
    if given is None:
        raise _refused(example, "a pair must have a `corrupt` half, it has none. Add one")
    if isinstance(given, str) and example.prompt is not None:
        field = "question" if example.text is None else "text"
        return replace(example, **{field: given}, digest="")
    if len(example.pictures) != 1:
        count = len(example.pictures)
        raise _refused(
            example, f"a `corrupt` image must stand for exactly one image, got {count} images"
        )
    return replace(example, image=given, images=(), digest="")


def _refused(example: Example, why: str) -> InputError:
    return InputError(f"Example {example.id!r}: {why}.", example_id=example.id)
