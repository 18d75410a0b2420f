"""What is known of the positions that events refer to: token and text around it, or patch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.atlas.exemplars.keyed import example_key, position_keys
from analysis.sinks.places import sequence_rank
from probes.tokens.map import ROLES, TowerTokens

COLUMNS = (
    "example", "sequence", "position", "role", "token", "before", "after", "image", "tile", "row",
    "column", "left", "top", "right", "bottom",
)  # fmt: skip
"""Of a place. ``sequence``: which of its example's sequences in this tower (images, tiles)."""

_SLACK = 1024
_IMAGE = "<image>"


@dataclass(frozen=True)
class BatchPlaces:
    """The positions of one tower in one batch; every array is ``[position]``.

    Attributes:
        tokens: the token map.
        first: place of position 0; places go on from there and are never used again.
        keys: int64, `keyed.position_keys`.
        examples: uint64, `keyed.example_key`.
        sequence, rank: int64; rank -1 for padding.
        ids: of the examples of the batch.
    """

    tokens: TowerTokens
    first: int
    keys: NDArray[np.int64]
    examples: NDArray[np.uint64]
    sequence: NDArray[np.int64]
    rank: NDArray[np.int64]
    ids: tuple[str, ...]


class PlaceStore:
    """Remembers the positions that are referred to, and forgets them when nobody does any more."""

    def __init__(self, window: int, seed: int) -> None:
        self._window, self._seed = window, seed
        self._next = 0
        self._known: dict[int, tuple[Any, ...]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def open(self, tokens: TowerTokens, ids: Sequence[str]) -> BatchPlaces:
        """The positions of a batch; they are remembered by `remember`."""
        example = tokens.example.numpy()
        rank = sequence_rank(tokens).numpy()
        row_example = example[tokens.starts[:-1].numpy()] if tokens.rows else example
        # Which sequence of its example a row is: rows of an example need not be neighbours.
        nth = pd.Series(row_example).groupby(row_example).cumcount().to_numpy()
        sequence = np.repeat(nth, tokens.lengths.numpy()).astype(np.int64)
        of_example = np.array([example_key(i, self._seed) for i in ids], dtype=np.uint64)
        inside = (example >= 0) & (example < len(ids))
        examples = of_example[np.where(inside, example, 0)]
        keys = position_keys(examples, sequence, np.maximum(rank, 0))
        first, self._next = self._next, self._next + len(tokens)
        rank = np.where(inside, rank, -1)
        return BatchPlaces(tokens, first, keys, examples, sequence, rank, tuple(ids))

    def remember(self, places: BatchPlaces, live: Iterable[NDArray[np.int64]]) -> None:
        """Keep what is known of the places that are referred to.

        Args:
            live: all places of the tower that somebody refers to, -1 for none.
        """
        parts = list(live)
        new = [part[part >= places.first] - places.first for part in parts]
        unknown = np.unique(np.concatenate(new)).tolist() if new else []
        if unknown:
            writer = _Writer(places, self._window)
            for index in unknown:
                self._known[places.first + index] = writer.describe(index)
        wanted = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
        if len(self._known) > 2 * wanted.size + _SLACK:
            self._known = {p: self._known[p] for p in wanted.tolist() if p >= 0}

    def place(self, place: int) -> tuple[Any, ...]:
        """What is known of a place, in the order of `COLUMNS`."""
        return self._known[place]


class _Writer:
    """Describes positions of one batch."""

    def __init__(self, places: BatchPlaces, window: int) -> None:
        tokens = places.tokens
        self._places, self._window = places, window
        self._roles = [ROLES[role] for role in tokens.role.tolist()]
        self._words = _words(tokens, self._roles)
        self._starts = tokens.starts.tolist()
        patch = ("image", "tile", "row", "column")
        self._patch = [getattr(tokens, name).tolist() for name in patch]
        self._boxes = tokens.box.tolist()
        self._examples = tokens.example.tolist()
        self._rank = places.rank.tolist()
        self._glue: dict[int, str] = {}

    def describe(self, index: int) -> tuple[Any, ...]:
        """What is known of a position, in the order of `COLUMNS`."""
        places = self._places
        before, after = self._around(index) if places.tokens.text else ("", "")
        return (
            places.ids[self._examples[index]], int(places.sequence[index]), self._rank[index],
            self._roles[index], self._words[index], before, after,
            *(column[index] for column in self._patch), *self._boxes[index],
        )  # fmt: skip

    def _around(self, index: int) -> tuple[str, str]:
        """Text before and after a position, of its sequence only."""
        row = bisect_right(self._starts, index) - 1
        begin, end = self._starts[row], self._starts[row + 1]
        if row not in self._glue:
            # A vocabulary that writes no spaces: words are set apart by them.
            spaced = any(word[:1].isspace() for word in self._words[begin:end])
            self._glue[row] = "" if spaced else " "
        glue = self._glue[row]
        before = self._side(range(index - 1, begin - 1, -1))[::-1]
        return glue.join(before), glue.join(self._side(range(index + 1, end)))

    def _side(self, indices: Iterable[int]) -> list[str]:
        """The words of some positions without padding; neighbouring images are written once."""
        found: list[str] = []
        for index in indices:
            word = self._words[index]
            if self._rank[index] < 0 or (word == _IMAGE and found and found[-1] == word):
                continue
            if len(found) == self._window:
                break
            found.append(word)
        return found


def _words(tokens: TowerTokens, roles: Sequence[str]) -> list[str]:
    """Each position as its token, or as its role in angle brackets."""
    texts = tokens.text or ("",) * len(roles)
    return [
        text if text and role != "image" else f"<{role}>"
        for text, role in zip(texts, roles, strict=True)
    ]
