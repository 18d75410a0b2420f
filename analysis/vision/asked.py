"""What an example asks, found again in the tokens that the model reads, word by word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from analysis.vision.function_words import FUNCTION_WORDS
from probes.prompts import DESCRIBE
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.tokens.map import TowerTokens

Span = tuple[int, int]

_IMAGE, _PAD = ROLES.index("image"), ROLES.index("pad")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ATOM = re.compile(rf"{_WORD.pattern}|\S")
"""A word, or any other sign."""
_CONTINUED = "##"
"""How WordPiece marks a token that goes on with a word."""
_BREAK, _UNKNOWN = "\0", "\1"
_UNKNOWN_TOKENS = ("<unk>", "[unk]")


@dataclass(frozen=True)
class AskedWord:
    """A word of a question.

    Attributes:
        positions: of its tokens, within their row.
        content: whether it is none of the function words.
    """

    text: str
    positions: tuple[int, ...]
    content: bool


@dataclass(frozen=True)
class Asked:
    """The user's own text in a row, without what a chat template puts around it.

    Attributes:
        positions: of all its tokens, punctuation included, ascending, within their row.
        words: in order.
    """

    positions: tuple[int, ...]
    words: tuple[AskedWord, ...]


def find_asked(
    tokens: TowerTokens,
    row: int,
    example: Example,
    stop: int | None = None,
    function_words: Collection[str] = FUNCTION_WORDS,
) -> Asked | None:
    """Where a row of the token map holds what its example asks; None where it is not found.

    Letters are compared without case, spaces and forms of Unicode, so that the tokenizer's own
    spelling of spaces does not matter. Where the text comes more than once, the last place counts.
    A text that holds image tokens itself is looked for in pieces, and all of it counts as asked. A
    token for unknown words stands for any one word or sign.

    Args:
        stop: position in the row before which to look: where the answer begins.
    """
    if not tokens.text:
        return None
    first = int(tokens.starts[row])
    size = int(tokens.starts[row + 1]) - first
    size = size if stop is None else min(stop, size)
    roles = tokens.role[first : first + size].tolist()
    texts = tokens.text[first : first + size]
    letters, owners = _letters(texts, roles)
    asked = example.prompt if example.prompt is not None else DESCRIBE
    marks = {text for text, role in zip(texts, roles, strict=True) if role == _IMAGE}
    pieces = [_ATOM.findall(piece) for piece in _pieces(asked, marks)]
    places = list(_backwards(letters, pieces))
    if not pieces or len(places) < len(pieces):
        return None
    positions: set[int] = set()
    words = []
    for atoms, spans in zip(pieces, reversed(places), strict=True):
        for atom, (start, end) in zip(atoms, spans, strict=True):
            mine = tuple(dict.fromkeys(owners[start:end]))
            positions.update(mine)
            if _WORD.fullmatch(atom):
                spoken = atom.casefold().replace("’", "'")
                words.append(AskedWord(atom, mine, spoken not in function_words))
    return Asked(tuple(sorted(positions)), tuple(words))


def joined(texts: Sequence[str], spaced: bool) -> tuple[str, list[Span]]:
    """The text that tokens make, and from where to where each of them stands in it.

    Args:
        spaced: whether the tokens hold their own spaces, see `holds_spaces`. If not, each begins
            a new word, but for those that WordPiece marks.

    >>> joined(["a", "tri", "##angle"], spaced=False)
    ('a triangle', [(0, 1), (2, 5), (5, 10)])
    """
    whole, spans = "", []
    for text in texts:
        piece = text.removeprefix(_CONTINUED)
        if whole and piece and not spaced and piece == text:
            whole += " "
        spans.append((len(whole), len(whole) + len(piece)))
        whole += piece
    return whole, spans


def holds_spaces(texts: Sequence[str]) -> bool:
    """Whether tokens carry the spaces between words, as byte-level and SentencePiece ones do."""
    return any(text != text.strip() for text in texts)


def _letters(texts: Sequence[str], roles: Sequence[int]) -> tuple[str, list[int]]:
    """All letters of a row, and the position that each belongs to; images are breaks."""
    letters: list[str] = []
    owners: list[int] = []
    for position, (text, role) in enumerate(zip(texts, roles, strict=True)):
        if role == _PAD:
            continue
        plain = _BREAK if role == _IMAGE else _plain(text.removeprefix(_CONTINUED))
        plain = _UNKNOWN if plain in _UNKNOWN_TOKENS else plain
        letters.append(plain)
        owners += [position] * len(plain)
    return "".join(letters), owners


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pieces(text: str, marks: Collection[str]) -> list[str]:
    """A text without the image tokens that stand in it."""
    split = sorted((mark.strip() for mark in marks if mark.strip()), key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, split)), text) if split else [text]
    return [part for part in parts if _plain(part)]


def _backwards(letters: str, pieces: Sequence[Sequence[str]]) -> Iterator[list[Span]]:
    """Where the atoms of each piece stand, from the last piece on, as late as possible.

    Ends early where a piece is missing. An unknown token stands for any one atom.
    """
    end = len(letters)
    for atoms in reversed(pieces):
        wanted = "".join(f"({re.escape(_plain(atom))}|{_UNKNOWN})" for atom in atoms)
        # Looking ahead finds places that overlap, of which the last one counts.
        found = list(re.finditer(f"(?={wanted})", letters[:end]))
        if not found:
            return
        spans = [found[-1].span(number + 1) for number in range(len(atoms))]
        end = spans[0][0]
        yield spans
