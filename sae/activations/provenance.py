"""What rows of head outputs were made from, so that a store or a coder can be told from another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.fingerprint import fingerprint
from probes.readers.registry import content_digest

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject


def about_subject(subject: Subject) -> dict[str, Any]:
    """Name, revision, dtype and fingerprint of the weights."""
    return {
        "name": subject.name,
        "revision": subject.revision,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(subject.model),
    }


def digest_of_examples(examples: Iterable[Example]) -> str:
    """blake2b over ids and contents, in order; images that are not from a file are read."""
    total = blake2b(digest_size=16)
    for example in examples:
        content = example.digest or content_digest(
            repr((example.prompt, example.answer)).encode(), *map(_picture, example.pictures)
        )
        total.update(f"{example.id}\0{content}\n".encode())
    return total.hexdigest()


def digest_of_batches(batches: Sequence[Batch]) -> str:
    """blake2b over the ids of the examples and the model's inputs, in order."""
    total = blake2b(digest_size=16)
    for batch in batches:
        total.update("\0".join(example.id for example in batch.examples).encode())
        for name, value in sorted(batch.tensors.items()):
            total.update(f"{name}\n".encode())
            total.update(digest_of_tensor(value) if isinstance(value, Tensor) else _other(value))
    return total.hexdigest()


def digest_of_tensor(value: Tensor) -> bytes:
    """blake2b of shape, dtype and content."""
    total = blake2b(f"{value.dtype} {tuple(value.shape)}\n".encode(), digest_size=16)
    raw = value.detach().cpu().contiguous()
    if raw.numel():
        total.update(raw.view(-1).view(torch.uint8).numpy().data)
    return total.digest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One phrase per thing in which two records differ, such as ``data.digest was 'a', now 'b'``.

    >>> differences({"a": {"b": 1}, "c": [2]}, {"a": {"b": 3}, "c": (2,)})
    ['a.b was 1, now 3']
    """
    found = []
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{prefix}{name}.")
        elif _plain(was) != _plain(now):
            found.append(f"{prefix}{name} was {was!r}, now {now!r}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _picture(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        path = Path(image)
        return path.read_bytes() if path.is_file() else str(image).encode()
    if isinstance(image, Tensor):
        return digest_of_tensor(image)
    return image.tobytes() if hasattr(image, "tobytes") else repr(image).encode()


def _other(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        parts = [digest_of_tensor(v) if isinstance(v, Tensor) else _other(v) for v in value]
        return content_digest(*parts).encode()
    return repr(value).encode()
