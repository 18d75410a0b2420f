"""Cut texts that are longer than a context into examples of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from probes.inputs import Example
from probes.readers.registry import content_digest


def text_windows(examples: Iterable[Example], tokenizer: Any, context: int) -> Iterator[Example]:
    """The examples, long texts as pieces ``ID#0``, ``ID#1``, ... of at most ``context`` tokens.

    Pieces are cut between tokens, follow each other without overlap, and are prepared like any
    text: where the tokenizer begins with BOS, so does each piece. Examples with images, questions
    or answers stay whole.

    Raises:
        ValueError: the tokenizer does not say where its tokens begin, or the context has no room.
    """
    room = context - tokenizer.num_special_tokens_to_add() if tokenizer is not None else 0
    if tokenizer is None or not getattr(tokenizer, "is_fast", False) or room < 1:
        raise ValueError(
            "To cut texts, the model must have a fast tokenizer and `context` must leave room for "
            f"a token, got {type(tokenizer).__name__} and {context}. Leave `context` out."
        )
    for example in examples:
        plain = bool(example.text) and not example.pictures and example.answer is None
        if not plain or _tokens(tokenizer, example.text or "") <= context:
            yield example
        else:
            for number, piece in enumerate(_pieces(example.text or "", tokenizer, context, room)):
                digest = content_digest(piece.encode())
                yield replace(example, id=f"{example.id}#{number}", text=piece, digest=digest)


def _pieces(text: str, tokenizer: Any, context: int, room: int) -> Iterator[str]:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    first = 0
    while first < len(offsets):
        end = min(first + room, len(offsets))
        # Cut out of its text, a piece may be read as a token or two more.
        while end > first + 1 and _tokens(tokenizer, _between(text, offsets, first, end)) > context:
            end -= 1
        piece = _between(text, offsets, first, end)
        if piece.strip():
            yield piece
        first = end


def _between(text: str, offsets: list[tuple[int, int]], first: int, end: int) -> str:
    # From where the last piece ended: tokens need not cover the space between them.
    begin = offsets[first - 1][1] if first else 0
    stop = len(text) if end == len(offsets) else offsets[end - 1][1]
    return text[begin:stop]


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, verbose=False)["input_ids"])
