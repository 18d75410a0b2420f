"""A saved index of features: its list, and one feature at a time; no model is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.run_files import MANIFEST, SCHEMA, RunError, read_json
from sae.feature_index.form import (
    AGAIN,
    ATTRIBUTIONS,
    DECILE,
    EXAMPLES,
    FEATURES,
    INPUTS,
    KIND,
    PICTURES,
    TOP,
)

if TYPE_CHECKING:
    import pandas as pd

_LISTED = (
    "latent", "firings", "density", "largest", "mean", "top_head", "top_share", "followed",
    "example", "words",
)  # fmt: skip


@dataclass(frozen=True)
class IndexedExample:
    """A firing with its window.

    Attributes:
        group: which tenth of the strengths, 0 the strongest; 0 for the strongest examples.
        number: of the input among those that are kept, -1 if it is not.
        words: around the position; empty where no text is known.
        centre: which of them is the position itself.
        patch: image, tile, row and column; None where it is no patch.
        box: of the patch in pixels of the original picture.
        fired: where in the same input the latent fires, and how strongly, strongest first.
    """

    latent: int
    group: int
    rank: int
    example: str
    position: int
    strength: float
    role: str
    number: int
    words: tuple[str, ...]
    centre: int
    patch: tuple[int, int, int, int] | None
    box: tuple[float, float, float, float] | None
    fired: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class IndexedFeature:
    """One latent: numbers, and what it speaks for.

    Attributes:
        rows, firings: positions that were read, and at how many of them it fires.
        mean: of its strengths where it fires; NaN if it never does.
        top_head: with the largest share of the decoder row, -1 for a row of zeros.
        decoder_shares, firing_shares: as of `sae.decoder_shares`, `sae.firing_shares`.
        followed: whether examples were kept.
    """

    site: str
    latent: int
    rows: int
    firings: int
    density: float
    largest: float
    mean: float
    top_head: int
    decoder_shares: tuple[float, ...]
    firing_shares: tuple[float, ...]
    words: tuple[tuple[str, float], ...]
    words_against: tuple[tuple[str, float], ...]
    followed: bool


@dataclass(frozen=True)
class KeptInput:
    """An input that is kept.

    Attributes:
        objects, boxes: what the data know of it, in pixels of the original picture.
        pictures: file of a thumbnail and the original's size ``(width, height)``.
    """

    id: str
    objects: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    pictures: tuple[tuple[Path, int, int], ...]


@dataclass(frozen=True)
class FeatureIndex:
    """All features of one coder on some data.

    Attributes:
        about: the manifest: ``site heads latents rows examples dead followed model data``, and
            why something is not there (``no_words``, ``no_attribution``).
        features: a line per latent: ``latent firings density largest mean top_head top_share
            followed example words``, words with spaces between. `feature` has all of one latent.
    """

    path: Path
    about: dict[str, Any]
    features: pd.DataFrame = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> FeatureIndex:
        """Read an index that `headscope sae features` wrote.

        Raises:
            RunError: there is none, it is unfinished, of another version, or cannot be read.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise RunError(f"{folder} holds no finished index of features. {AGAIN}")
        about = read_json(folder / MANIFEST, AGAIN)
        if about.get("kind") != KIND:
            raise RunError(f"{folder} must hold an index of features, it holds something else.")
        if about.get("schema") != SCHEMA:
            raise RunError(f"{folder} has schema {about.get('schema')}, known is {SCHEMA}. {AGAIN}")
        return cls(folder, about, _listed(folder / FEATURES))

    @property
    def site(self) -> str:
        """The attention layer, such as ``language.L2``."""
        return str(self.about["site"])

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        return int(self.about["heads"])

    def feature(self, latent: int) -> IndexedFeature:
        """One latent.

        Raises:
            ValueError: the coder has no such latent.
        """
        if not 0 <= latent < len(self.features):
            raise ValueError(
                f"A latent must be between 0 and {len(self.features) - 1}, got {latent}. Choose "
                "one that the coder has."
            )
        lines = self._lines(FEATURES, [("latent", "==", latent)])
        if len(lines) != 1:
            raise RunError(f"{self.path / FEATURES} has {len(lines)} lines of a latent. {AGAIN}")
        line = lines.iloc[0]
        return IndexedFeature(
            self.site,
            latent,
            int(self.about["rows"]),
            int(line["firings"]),
            float(line["density"]),
            float(line["largest"]),
            float(line["mean"]),
            int(line["top_head"]),
            tuple(map(float, line["decoder_shares"])),
            tuple(map(float, line["firing_shares"])),
            _pairs(line["words"], line["effects"]),
            _pairs(line["words_against"], line["effects_against"]),
            bool(line["followed"]),
        )

    def top(self, latent: int) -> list[IndexedExample]:
        """Its strongest examples, strongest first; none of a latent that was not followed."""
        return self._examples(latent, TOP)

    def deciles(self, latent: int) -> list[list[IndexedExample]]:
        """Examples by tenths of its strengths, the strongest tenth first."""
        every = self._examples(latent, DECILE)
        groups = max((one.group for one in every), default=-1) + 1
        return [[one for one in every if one.group == group] for group in range(groups)]

    def attribution_lines(self, latent: int) -> pd.DataFrame:
        """Of which examples heads and sources are kept; as `attribution_line` wrote them."""
        return self._lines(ATTRIBUTIONS, [("latent", "==", latent)])

    @cached_property
    def inputs(self) -> tuple[KeptInput, ...]:
        """The inputs that are kept, by number. Pictures are looked for in the index alone.

        Raises:
            RunError: they cannot be read.
        """
        records = read_json(self.path / INPUTS, AGAIN)
        try:
            return tuple(self._input(record) for record in records["inputs"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{self.path / INPUTS} cannot be read ({error}). {AGAIN}") from error

    def lines_of(self, name: str, filters: Sequence[tuple[str, str, Any]]) -> pd.DataFrame:
        """Some lines of one of the tables; only those row groups are read that may have them.

        Raises:
            RunError: it cannot be read.
        """
        return self._lines(name, list(filters))

    def _examples(self, latent: int, kind: str) -> list[IndexedExample]:
        frame = self._lines(EXAMPLES, [("latent", "==", latent)])
        if frame.empty:
            return []
        mine = frame[frame["kind"] == kind]
        return [_example(line) for line in mine.to_dict("records")]

    def _lines(self, name: str, filters: list[tuple[str, str, Any]]) -> pd.DataFrame:
        import pandas as pd
        from pyarrow import ArrowException

        file = self.path / name
        try:
            return pd.read_parquet(file, filters=filters)
        except (ArrowException, OSError, ValueError, KeyError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise RunError(f"{file} cannot be read ({why}). {AGAIN}") from error

    def _input(self, record: dict[str, Any]) -> KeptInput:
        pictures = tuple(
            (
                self.path / PICTURES / Path(str(picture["file"])).name,
                int(picture["width"]),
                int(picture["height"]),
            )
            for picture in record.get("pictures") or ()
        )
        return KeptInput(
            str(record["id"]),
            tuple(str(name) for name in record.get("objects") or ()),
            tuple(tuple(float(edge) for edge in box) for box in record.get("boxes") or ()),
            pictures if all(file.is_file() for file, _, _ in pictures) else (),
        )


def _listed(file: Path) -> pd.DataFrame:
    """The columns that a list shows; of 65,536 latents all others would take 0.2 GB."""
    import pyarrow.compute as compute
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(file, columns=list(_LISTED))
        words = compute.binary_join(table["words"].combine_chunks(), " ")
        return table.set_column(_LISTED.index("words"), "words", words).to_pandas()
    except (ArrowException, OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise RunError(f"{file} cannot be read ({why}). {AGAIN}") from error


def _example(line: dict[str, Any]) -> IndexedExample:
    edges = tuple(float(line[edge]) for edge in ("left", "top", "right", "bottom"))
    placed = int(line["row"]) >= 0
    left, top, right, bottom = edges
    return IndexedExample(
        int(line["latent"]),
        int(line["group"]),
        int(line["rank"]),
        str(line["example"]),
        int(line["position"]),
        float(line["strength"]),
        str(line["role"]),
        int(line["number"]),
        tuple(str(word) for word in line["words"]),
        int(line["centre"]),
        (int(line["image"]), int(line["tile"]), int(line["row"]), int(line["column"]))
        if placed
        else None,
        (left, top, right, bottom) if placed and not math.isnan(left) else None,
        tuple(zip(map(int, line["fired"]), map(float, line["strengths"]), strict=True)),
    )


def _pairs(words: Any, effects: Any) -> tuple[tuple[str, float], ...]:
    return tuple(zip(map(str, words), map(float, effects), strict=True))
