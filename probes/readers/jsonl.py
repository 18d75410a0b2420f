"""Read a JSONL file: one JSON object per line, with the fields of an example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probes.inputs import Example, InputError
from probes.readers.image_folder import SUFFIXES

FILE_OF_A_FOLDER = "examples.jsonl"
"""A folder that holds this file is read as a data set, not as a folder of images."""

_TEXT_FIELDS = ("text", "question", "answer")


def matches(data: str) -> bool:
    """Whether the data is a JSONL file, or a folder with an `examples.jsonl`."""
    path = Path(data).expanduser()
    if path.is_dir():
        return (path / FILE_OF_A_FOLDER).is_file()
    return path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson")


def read(data: str) -> Iterator[Example]:
    """One example per line; empty lines are passed over.

    Fields: ``id text image images question answer objects boxes label corrupt correct wrong``; all
    others go to `extra`. Relative image paths are looked up from the folder of the file. `corrupt`
    is a text, or a path where the example has an image and the name is that of an image file.

    Raises:
        InputError: a line is not a JSON object, a field has the wrong type, an image is missing,
            or an id appears twice; the sentence names the line.
    """
    path = Path(data).expanduser()
    path = path / FILE_OF_A_FOLDER if path.is_dir() else path
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                example = _example(line, path, f"Line {number} of {path.name!r}", number)
                if example.id in seen:
                    raise InputError(
                        f"Line {number} of {path.name!r} has the id {example.id!r} of line "
                        f"{seen[example.id]}. Give every example an id of its own."
                    )
                seen[example.id] = number
                yield example
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.name!r} cannot be read as UTF-8 text ({error}). Check the file."
        ) from error


def example_from_fields(fields: dict[str, Any], name: str, where: str, folder: Path) -> Example:
    """An example from a record; ``name`` is used, with a digest, where the record has no id."""
    from probes.readers.registry import content_digest

    values = dict(fields)
    for key in _TEXT_FIELDS:
        if values.get(key) is not None and not isinstance(values[key], str):
            raise _wrong(where, key, "a string", values[key])
    images = tuple(
        _image(item, where, folder)
        for item in [values.pop("image", None), *_list(values.pop("images", None), where, "images")]
        if item is not None
    )
    objects = _list(values.pop("objects", None), where, "objects")
    if not all(isinstance(item, str) for item in objects):
        raise _wrong(where, "objects", "a list of strings", objects)
    boxes = _list(values.pop("boxes", None), where, "boxes")
    if not all(_is_box(box) for box in boxes):
        raise _wrong(where, "boxes", "a list of [left, top, right, bottom]", boxes)
    label = values.pop("label", None)
    if not isinstance(label, (int, str, type(None))):
        raise _wrong(where, "label", "a number or a word", label)
    corrupt = _corrupt(values, where, folder, bool(images))
    told_apart = {
        key: _word(values, key, where, corrupt is not None) for key in ("correct", "wrong")
    }
    given = values.pop("id", None)
    written = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=_not_json).encode()
    files = [item for item in (*images, corrupt) if isinstance(item, Path)]
    digest = content_digest(written, *(path.read_bytes() for path in files))
    return Example(
        id=str(given) if given is not None else f"{name}@{digest[:8]}",
        image=images[0] if len(images) == 1 else None,
        images=images if len(images) > 1 else (),
        objects=tuple(objects),
        boxes=tuple(tuple(float(edge) for edge in box) for box in boxes),
        label=label,
        corrupt=corrupt,
        **told_apart,
        digest=digest,
        **{key: values.pop(key, None) for key in _TEXT_FIELDS},
        extra=values,
    )


def _example(line: str, path: Path, where: str, number: int) -> Example:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not valid JSON ({error.msg} at column {error.colno}). Correct that line."
        ) from error
    if not isinstance(fields, dict):
        raise InputError(
            f"{where} must be a JSON object, got {type(fields).__name__}. Correct that line."
        )
    return example_from_fields(fields, f"{path.stem}:{number}", where, path.parent)


def _image(item: Any, where: str, folder: Path) -> Any:
    if not isinstance(item, str):
        if isinstance(item, (int, float, bool, dict)):
            raise _wrong(where, "image", "a path", item)
        return item
    path = Path(item).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.is_file():
        raise InputError(
            f"{where} names the image {item!r}, which does not exist. Paths are looked up from "
            "the folder of the JSONL file."
        )
    return path


def _corrupt(values: dict[str, Any], where: str, folder: Path, pictured: bool) -> Any:
    """A text as it is; an image as `image` is, where the example has one; a flag is the user's."""
    if isinstance(values.get("corrupt"), bool):
        return None
    item = values.pop("corrupt", None)
    if item is None or (isinstance(item, str) and not _names_image(item, pictured)):
        return item
    if isinstance(item, (int, float, dict, list)):
        raise _wrong(where, "corrupt", "a text or the path of an image", item)
    return _image(item, where, folder)


def _names_image(item: str, pictured: bool) -> bool:
    return pictured and Path(item).suffix.lower() in SUFFIXES


def _word(values: dict[str, Any], key: str, where: str, paired: bool) -> int | str | None:
    """A word or a class; without a `corrupt`, what is neither stays a field of the user's own."""
    value = values.get(key)
    if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool)):
        return values.pop(key, None)
    if not paired:
        return None
    raise _wrong(where, key, "a word or the number of a class", value)


def _list(value: Any, where: str, key: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, key, "a list", value)
    return list(value)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(edge, (int, float)) for edge in box)
    )


def _wrong(where: str, key: str, wanted: str, got: Any) -> InputError:
    shown = repr(got) if len(repr(got)) < 60 else f"{repr(got)[:57]}..."
    return InputError(f"{where}: `{key}` must be {wanted}, got {shown}. Correct that line.")


def _not_json(value: Any) -> str:
    if hasattr(value, "tobytes"):
        from probes.readers.registry import content_digest

        return content_digest(value.tobytes())
    return str(value)
