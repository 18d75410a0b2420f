"""The files of a store of head outputs: plan, ids, shards and the index, which is written last.

FOLDER/
  plan.json            written first: what the rows are made from, and how they are kept
  examples.json        ids of the examples, where the source knows them
  shards/shard-000000.safetensors ...
                       tensors ``SITE/rows [row width]``, and ``SITE/example``, ``SITE/position``
  index.json           written last: a folder without it is unfinished
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.atomic_file import write_json, written_atomically

SCHEMA = 1
PLAN, EXAMPLES, INDEX, SHARDS, LOCK = "plan.json", "examples.json", "index.json", "shards", "lock"
ROWS, EXAMPLE, POSITION = "rows", "example", "position"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StoreError(ValueError):
    """A folder cannot be used as a store of head outputs; the message is a sentence or two."""


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / SHARDS / f"shard-{number:06d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a shard, whole or not at all; ``about`` is JSON in its header."""
    from safetensors.torch import save

    path.parent.mkdir(exist_ok=True)
    text = {"about": json.dumps(about, ensure_ascii=False)}
    with written_atomically(path) as temporary:
        # Not save_file: its files can be read by their owner alone, whatever the umask.
        temporary.write_bytes(save(dict(tensors), metadata=text))


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the JSON of a shard.

    Raises:
        StoreError: the file cannot be read.
    """
    return _opened(path, tensors=True)


def about_shard(path: Path) -> dict[str, Any]:
    """The JSON of a shard, its tensors left on the disk.

    Raises:
        StoreError: the file cannot be read.
    """
    return _opened(path, tensors=False)[1]


def file_digest(path: Path) -> str:
    """blake2b of a file."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a store.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}). Store the activations again in another folder."
        ) from error


def write_record(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_json(path, value)


def damaged(path: Path, why: object) -> StoreError:
    """The error of a shard that is not what it must be."""
    return StoreError(
        f"Shard {path} of the store is damaged ({why}). Delete that one file and {INDEX}, and "
        "store again with `resume`: only that shard is made anew."
    )


def _opened(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            names = list(file.keys()) if tensors else []
            return {name: file.get_tensor(name) for name in names}, about
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged(path, " ".join(str(error).split()) or type(error).__name__) from error
