"""Read an input set that comes with headscope, by its name."""

from __future__ import annotations

from collections.abc import Iterator

from probes.bundled import bundled_sets
from probes.inputs import Example
from probes.readers import jsonl


def matches(data: str) -> bool:
    """Whether the data is the name of a bundled set."""
    return data in bundled_sets()


def read(data: str) -> Iterator[Example]:
    """The examples of the bundled set."""
    yield from jsonl.read(str(bundled_sets()[data].path / jsonl.FILE_OF_A_FOLDER))
