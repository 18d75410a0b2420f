"""The examples that a run keeps: what they are, their pictures, positions and patterns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.kept_patterns.form import FOLDER
from analysis.kept_patterns.reading import KeptPatterns
from analysis.run_files import AGAIN, RunError, read_table

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES, INDEX, TOKENS = "examples", "index.json", "tokens.parquet"
_OLD = (
    "This run keeps no attention patterns: it was made before runs did. Score again into another "
    "folder to keep some."
)


@dataclass(frozen=True)
class KeptExample:
    """One kept example.

    Attributes:
        number: in the order of the run; names its files.
        text, question, answer: None where there is none.
        objects, boxes: names, and ``left top right bottom`` in pixels of the original picture.
        pictures: file and original size ``(width, height)``; the file is a thumbnail.
        patterns: the file, None where there is none.
        why_not: why there are no patterns, in a sentence; else empty.
        kept: ``whole`` or ``strongest``: what of each pattern; empty where there is none.
    """

    number: int
    id: str
    text: str | None
    question: str | None
    answer: str | None
    objects: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    pictures: tuple[tuple[Path, int, int], ...]
    patterns: Path | None
    why_not: str
    kept: str = ""

    def open_patterns(self) -> KeptPatterns:
        """Its patterns.

        Raises:
            RunError: there are none, or they cannot be read.
        """
        if self.patterns is None:
            raise RunError(self.why_not)
        return KeptPatterns(self.patterns)


def kept_examples(run: Path) -> list[KeptExample]:
    """The kept examples of a run's folder; none where it is too young to have any.

    Files are looked for in the run alone, whatever its index says.

    Raises:
        RunError: the index cannot be read.
    """
    folder = run / EXAMPLES
    if not (folder / INDEX).is_file():
        return []
    try:
        records = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [_example(folder, number, record) for number, record in enumerate(records)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder / INDEX} cannot be read ({error}). {AGAIN}") from error


def tokens_of(run: Path, example: str, tower: str) -> pd.DataFrame:
    """The positions of one example in one tower: line n is flat position n; none if unknown.

    Columns: ``sequence position role text image tile row column left top right bottom``.

    Raises:
        RunError: the table cannot be read.
    """
    frame = read_table(run / EXAMPLES / TOKENS)
    mine = frame[(frame["id"] == example) & (frame["tower"] == tower)]
    return mine.drop(columns=["tower", "id", "example"]).reset_index(drop=True)


def _example(folder: Path, number: int, record: dict[str, Any]) -> KeptExample:
    about = record.get("patterns")
    patterns, why_not, kept = None, _OLD, ""
    if about is not None:
        name = str(about.get("file") or "")
        patterns = folder / FOLDER / Path(name).name if name else None
        why_not, kept = str(about.get("reason") or ""), str(about.get("kept") or "")
    if patterns is not None and not patterns.is_file():
        patterns, why_not = None, f"The patterns {patterns} are gone. {AGAIN}"
    return KeptExample(
        number,
        str(record["id"]),
        record.get("text"),
        record.get("question"),
        record.get("answer"),
        tuple(str(name) for name in record.get("objects") or ()),
        tuple(tuple(float(edge) for edge in box) for box in record.get("boxes") or ()),
        tuple(
            (
                folder / Path(str(picture["file"])).name,
                int(picture["width"]),
                int(picture["height"]),
            )
            for picture in record.get("pictures") or ()
        ),
        patterns,
        why_not,
        kept,
    )
