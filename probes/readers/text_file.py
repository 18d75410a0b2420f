"""Read a plain text file: one example per paragraph, or per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from probes.inputs import Example, InputError


def matches(data: str) -> bool:
    """Whether the data is a file that no other reader wants."""
    return Path(data).expanduser().is_file()


def read(data: str) -> Iterator[Example]:
    """One example per paragraph if blank lines separate paragraphs, else one per line.

    The file is read as a stream, so it may be longer than memory. Lines of a paragraph stay
    lines. The id is the file's name, the first line's number, and a digest of the text.

    Raises:
        InputError: the file is empty, not UTF-8, or binary.
    """
    from probes.readers.registry import content_digest

    path = Path(data).expanduser()
    if path.suffix.lower() == ".json":
        raise InputError(
            f"{path.name!r} is one JSON document, not a text. Write one object per line and call "
            "it `.jsonl`."
        )
    try:
        by_paragraph = _has_paragraphs(path)
        empty = True
        for number, text in _paragraphs(path) if by_paragraph else _lines(path):
            empty = False
            digest = content_digest(text.encode())
            yield Example(id=f"{path.name}:{number}@{digest[:8]}", text=text, digest=digest)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.name!r} cannot be read as UTF-8 text ({error}). Check the file."
        ) from error
    if empty:
        raise InputError(f"Text file {path.name!r} is empty. Give a file with some text.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if "\0" in line:
                raise InputError(
                    f"{path.name!r} is not plain text: line {number} has a NUL byte. "
                    "Give a text file, a JSONL file, or images."
                )
            if line.strip():
                yield number, line.strip()


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    first, block, last = 0, [], 0
    for number, line in _lines(path):
        if block and number != last + 1:
            yield first, "\n".join(block)
            block = []
        if not block:
            first = number
        block.append(line)
        last = number
    if block:
        yield first, "\n".join(block)


def _has_paragraphs(path: Path) -> bool:
    """Whether some blank line stands between two lines of text."""
    last = 0
    for number, _ in _lines(path):
        if last and number != last + 1:
            return True
        last = number
    return False
