"""Read one image, or every image in a folder and the folders in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from probes.inputs import Example, InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def matches(data: str) -> bool:
    """Whether the data is a folder or an image file."""
    path = Path(data).expanduser()
    return path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES)


def read(data: str) -> Iterator[Example]:
    """One example per image, in the order of their paths; hidden files are passed over.

    The id is the path within the folder and a digest of the file, so that it stays the same
    wherever the folder lies. Images are decoded later, when they are needed.
    """
    from probes.readers.registry import content_digest

    root = Path(data).expanduser()
    if root.is_file():
        paths, base = [root], root.parent
    else:
        paths, base = sorted(_images_in(root)), root
    if not paths:
        raise InputError(
            f"Folder {data!r} holds no image. Give a folder with PNG, JPEG or WebP files."
        )
    for path in paths:
        name = path.relative_to(base).as_posix()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"Image {name!r} cannot be read ({error.strerror}). Check the file."
            ) from error
        digest = content_digest(content)
        yield Example(id=f"{name}@{digest[:8]}", image=path, digest=digest)


def _images_in(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            yield path
