"""Which characters of a text each of its tokens wrote, and which object it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.hallucination.chair import judge

if TYPE_CHECKING:
    from analysis.hallucination.vocabulary import Vocabulary

TRUE, HALLUCINATED, OTHER = "true_object", "hallucinated_object", "other"
Span = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """A token of an answer, and what is known of it.

    Attributes:
        text: the characters that it wrote; empty for the first bytes of a letter of several.
        group: ``true_object``, ``hallucinated_object`` or ``other``; empty where the objects of
            the image are not known.
        kind: class of the object it belongs to, empty for none.
        mention: which mention of the text it belongs to, counted from 0, -1 for none.
    """

    text: str
    group: str = ""
    kind: str = ""
    mention: int = -1


def token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The decoded text, and from which character to which each token wrote.

    Tokens are decoded one more at a time, as no tokenizer tells the places of tokens that a model
    wrote: so leading spaces, merged punctuation and letters of several bytes come out as they
    stand in the whole text. A letter belongs to the token that completes it. Of three words that
    are a token each, ``a red star`` has the spans ``(0, 1), (1, 5), (5, 10)``.
    """
    written, spans = "", []
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        text = text.rstrip("\ufffd")  # a letter whose bytes are not all there yet
        start = _shared(written, text)
        spans.append((start, max(start, len(text))))
        written = text
    return written, spans


def words(
    tokenizer: Any,
    ids: Sequence[int],
    objects: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
) -> list[Word]:
    """What each token of an answer wrote, and whether that is an object, and one that is there.

    A token belongs to a mention as soon as one of its characters does, spaces aside.

    Args:
        objects: what is in the image.
        vocabulary: the objects that are looked for; None where nothing is known of them.
    """
    text, spans = token_spans(tokenizer, ids)
    plain = [text[start:end] for start, end in spans]
    if vocabulary is None:
        return [Word(piece) for piece in plain]
    judged = judge(text, objects, vocabulary)
    found = []
    for piece, (start, end) in zip(plain, spans, strict=True):
        start += len(piece) - len(piece.lstrip())
        word = Word(piece, OTHER)
        for number, mention in enumerate(judged.mentions):
            if max(start, mention.start) < min(end, mention.end):
                group = HALLUCINATED if mention in judged.hallucinated else TRUE
                word = Word(piece, group, mention.kind, number)
                break
        found.append(word)
    return found


def _shared(one: str, other: str) -> int:
    """Number of characters with which both begin."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
