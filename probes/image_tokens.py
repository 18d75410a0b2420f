"""Which positions of a prompt are there because of its images, and would not be without them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.tokens.map import TowerTokens

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_NAMED = re.compile(r"(^|_)(image|img|vision|boi|eoi|global|row|tile|patch)(_|$)")
_SAYS_IMAGE = re.compile(r"image|img|vision|boi\b|eoi\b|row_\d|col_\d|tile|patch", re.IGNORECASE)
_BLANK = re.compile(r"(\s|<0x0[9AD]>)*")
"""White space, also as the bytes that SentencePiece vocabularies write it with."""


def image_positions(subject: Subject, batch: Batch, tokens: TowerTokens) -> Tensor:
    """Bool ``[batch position]``: what the images brought into the rows of the language tower.

    That is: the positions with the role ``image`` and others with the image token's id (newlines of
    LLaVA-NeXT); next to them, tokens that the configuration, processor or tokenizer names after
    images or that say so themselves (``<|vision_start|>``, ``[IMG_END]``, ``<row_1_col_2>``); and
    between two pieces of one image whatever is special or blank. All other text stays.
    """
    shape = (tokens.rows, int(tokens.lengths[0]))
    role = tokens.has_role("image").reshape(shape)
    real = ~tokens.has_role("pad").reshape(shape)
    ids = tokens.ids.reshape(shape)
    placeholder = ids[role].unique()
    found = (role | (torch.isin(ids, placeholder) & (ids >= 0))) & real
    image = tokens.image.reshape(shape)
    special = tokens.has_role("special").reshape(shape)
    own = torch.isin(ids, torch.tensor(sorted(_ids_of_images(subject)), dtype=torch.long)) & real
    for row in range(shape[0]):
        _fill_gaps(found[row], image[row], special[row] | own[row], _blank(tokens, row, shape[1]))
    return _grown(found, own)


def _fill_gaps(found: Tensor, image: Tensor, special: Tensor, blank: Tensor) -> None:
    places = found.nonzero()[:, 0]
    gaps = (places[1:] - places[:-1] > 1).nonzero()[:, 0].tolist()
    for gap in gaps:
        first, last = int(places[gap]), int(places[gap + 1])
        between = slice(first + 1, last)
        one = int(image[first]) == int(image[last]) >= 0
        if one and bool((special[between] | blank[between]).all()):
            found[between] = True


def _blank(tokens: TowerTokens, row: int, length: int) -> Tensor:
    """Bool ``[position]``: text of white space alone."""
    if not tokens.text:
        return torch.zeros(length, dtype=torch.bool)
    start = int(tokens.starts[row])
    words = tokens.text[start : start + length]
    known = {word: bool(word) and _BLANK.fullmatch(word) is not None for word in set(words)}
    return torch.tensor([known[word] for word in words])


def _grown(found: Tensor, own: Tensor) -> Tensor:
    """The positions, with the image's own tokens that stand next to them."""
    while True:
        beside = torch.zeros_like(found)
        beside[:, 1:] |= found[:, :-1]
        beside[:, :-1] |= found[:, 1:]
        more = beside & own & ~found
        if not bool(more.any()):
            return found
        found = found | more


def _ids_of_images(subject: Subject) -> set[int]:
    """Ids of the tokens that frame images, by their name or by what they say."""
    tokenizer, found = subject.tokenizer, set()
    for holder in (subject.config, subject.processor, tokenizer):
        for name, value in _attributes(holder).items():
            if not _NAMED.search(name):
                continue
            if isinstance(value, int) and name.endswith(("token_id", "token_index")):
                found.add(value)
            elif isinstance(value, str) and tokenizer is not None:
                known = tokenizer.convert_tokens_to_ids(value)
                found |= {known} - {None, getattr(tokenizer, "unk_token_id", None)}
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return found | {
        int(i)
        for i, token in added.items()
        if _SAYS_IMAGE.search(getattr(token, "content", str(token)))
    }


def _attributes(holder: Any) -> dict[str, Any]:
    named = dict(getattr(holder, "special_tokens_map", None) or {})
    return {**getattr(holder, "__dict__", {}), **named}
