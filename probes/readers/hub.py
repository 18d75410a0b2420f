"""Read a data set of the hub, written ``hf:NAME:SPLIT``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from probes.inputs import Example, InputError
from probes.readers.jsonl import example_from_fields

_FIELDS = {"text", "image", "images", "question", "answer", "objects", "label", "boxes", "id"}
_FIELDS |= {"corrupt", "correct", "wrong"}
_ALIASES = {"caption": "text", "content": "text", "sentence": "text", "img": "image"}
"""What data sets call our fields; used only where our own name is missing."""


def matches(data: str) -> bool:
    """Whether the data is written ``hf:NAME`` or ``hf:NAME:SPLIT``."""
    return data.startswith("hf:")


def read(data: str) -> Iterator[Example]:
    """The rows of one split, streamed; ``hf:NAME/CONFIG`` is not a form: name the data set only.

    Raises:
        InputError: `datasets` is not installed, or the data set cannot be reached or is unknown.
    """
    name, _, split = data.removeprefix("hf:").rpartition(":")
    name, split = (name, split) if name else (split, "train")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"{data!r} needs the package `datasets`, which is not installed. "
            "Run `pip install headscope[hub]`."
        ) from error
    try:
        rows = load_dataset(name, split=split, streaming=True)
        iterator = iter(rows)
    except Exception as error:  # datasets raises many kinds: offline, unknown, gated, no split
        raise _unreachable(data, error) from error
    number = 0
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise _unreachable(data, error) from error
        yield _example(dict(row), f"{name}:{split}:{number}", f"Row {number} of {data!r}")
        number += 1


def _example(row: dict, name: str, where: str) -> Example:
    for theirs, ours in _ALIASES.items():
        if theirs in row and ours not in row:
            row[ours] = row.pop(theirs)
    answer = row.get("answer")
    if isinstance(answer, list) and answer and isinstance(answer[0], str):
        row["answer"] = answer[0]
    for key in _FIELDS & set(row):
        if row[key] is None:
            del row[key]
    return example_from_fields(row, name, where, Path())


def _unreachable(data: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
    return InputError(
        f"The data set {data!r} cannot be read ({reason}). Check its name and split, and that "
        "this machine can reach the hub or holds the data set in its cache."
    )
