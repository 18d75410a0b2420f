"""Choose the reader of some data, and keep the examples that a kind of model can use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from hashlib import blake2b
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from probes.inputs import Example, InputError

_OURS = {
    "bundled": "probes.readers.bundled_set",
    "hub": "probes.readers.hub",
    "jsonl": "probes.readers.jsonl",
    "images": "probes.readers.image_folder",
    "text": "probes.readers.text_file",
}
"""Used where the package metadata is absent (a checkout on the path); the order is the rank."""


class Reader(Protocol):
    """Turns one format into examples: a module or an object with these two functions."""

    def matches(self, data: str) -> bool:
        """Whether this reader is the one for ``data`` (a name or a path)."""
        ...

    def read(self, data: str) -> Iterator[Example]:
        """The examples, one by one."""
        ...


def read_examples(
    data: str | Path,
    kind: str | None = None,
    limit: int | None = None,
    skipped: Callable[[Example, str], None] | None = None,
) -> Iterator[Example]:
    """The examples of a bundled set, folder, file, or hub data set that a model can use.

    Args:
        data: name of a bundled set, folder of images, image, text file, JSONL, or
            ``hf:NAME:SPLIT``. A bundled name wins over a folder of the same name: write
            ``./NAME`` for the folder.
        kind: kind of the subject: ``language`` keeps examples with text, ``vision`` those with
            an image, ``vision-language`` both; ``None`` keeps all.
        limit: stop after so many examples.
        skipped: called with each example that was left out, and why.

    Raises:
        InputError: no reader knows the data, it is empty or unreadable, or no example fits.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit must be at least 1, got {limit}. Leave it out to read all.")
    name = str(data)
    count = found = 0
    reason = ""
    for example in _reader_of(name).read(name):
        found += 1
        reason = why_not(example, kind)
        if reason:
            if skipped is not None:
                skipped(example, reason)
            continue
        yield example
        count += 1
        if limit is not None and count == limit:
            return
    if found == 0:
        raise InputError(f"{name!r} holds no example. Give data with at least one.")
    if count == 0:
        raise InputError(
            f"None of the {found} examples of {name!r} fits a {kind} model: {reason}. "
            "Choose other data with `--data`."
        )


def why_not(example: Example, kind: str | None) -> str:
    """Why a model of this kind cannot use the example; empty if it can."""
    has_image, has_text = bool(example.pictures), bool(example.prompt)
    if kind == "vision" and not has_image:
        return "it has no image"
    if kind in ("language", "encoder", "encoder-decoder", "text") and not has_text:
        return "it has no text"
    if kind == "vision-language" and not (has_image or has_text):
        return "it has neither an image nor text"
    return ""


def data_digest(examples: Iterable[Example]) -> str:
    """One digest of all examples: blake2b over their ids and content digests, in order."""
    total = blake2b(digest_size=16)
    for example in examples:
        content = example.digest or content_digest(repr((example.prompt, example.answer)).encode())
        total.update(f"{example.id}\0{content}\n".encode())
    return total.hexdigest()


def content_digest(*parts: bytes) -> str:
    """Sixteen hex digits of blake2b over the parts."""
    total = blake2b(digest_size=8)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def _reader_of(name: str) -> Reader:
    for reader in _readers():
        if reader.matches(name):
            return reader
    path = Path(name).expanduser()
    if not path.exists():
        from probes.bundled import bundled_sets

        known = ", ".join(bundled_sets()) or "none installed"
        raise InputError(
            f"Data {name!r} is neither a bundled set ({known}) nor an existing path. "
            "Check the spelling, or write hf:NAME:SPLIT for a data set of the hub."
        )
    raise InputError(
        f"No reader knows the format of {name!r}. Give a folder of images, a text file, "
        "or a JSONL file."
    )


@cache
def _readers() -> tuple[Reader, ...]:
    from importlib import import_module

    found = {point.name: point for point in entry_points(group="headscope.readers")}
    # Readers that a user installed come first: installing one is a decision.
    others: list[Reader] = [point.load() for name, point in found.items() if name not in _OURS]
    ours: list[Any] = [
        found[name].load() if name in found else import_module(path) for name, path in _OURS.items()
    ]
    return (*others, *ours)
