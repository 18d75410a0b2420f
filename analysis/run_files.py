"""The files of a run folder: their names, digests, and how two plans differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import half_written_name

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
PLAN, MANIFEST, HEADS, PROFILES, JOURNAL, LOCK = (
    "plan.json",
    "manifest.json",
    "heads.parquet",
    "profiles.parquet",
    "journal",
    "lock",
)
_MAY_DIFFER = {"command", "created", "device"}
AGAIN = "Score again into another folder."


class RunError(RuntimeError):
    """A run folder cannot be used as asked; the message is one or two plain sentences."""


def refuse_foreign(path: Path, own: Iterable[str] = (), called: str = "`--out`") -> None:
    """Nothing, if a folder is new, has a plan, or holds only what a start that was killed leaves.

    Args:
        own: what such a start may leave besides half of a plan.
        called: what the sentence calls the folder.

    Raises:
        RunError: it is a file, or holds something else.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{called} must be a folder, {path} is a file. Choose another name.")
    if not path.is_dir() or (path / PLAN).exists():
        return
    known = set(own)
    strangers = sorted(
        item.name
        for item in path.iterdir()
        if item.name not in known and half_written_name(item) != PLAN
    )
    if strangers:
        raise RunError(
            f"{called} must be a new or empty folder, {path} holds something else "
            f"({strangers[0]}). Choose another name; nothing was touched."
        )


def plan_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase per thing in which two plans differ, except when and how they were started."""
    old, new = _flat(old), _flat(new)
    return [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name.split(".")[0] not in _MAY_DIFFER and old.get(name) != new.get(name)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = list(item) if isinstance(item, tuple) else item
    return flat


def digests(path: Path, skip: set[str] | None = None) -> dict[str, str]:
    """blake2b of every file below ``path`` but its manifest and lock, by relative name."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and name.parts[0] not in (skip or ()):
            if name.as_posix() in (MANIFEST, f"{JOURNAL}/{LOCK}") or file.suffix == ".part":
                continue
            digest = blake2b(digest_size=16)
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
            found[name.as_posix()] = digest.hexdigest()
    return found


def read_json(path: Path, what_to_do: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
        RunError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}). {what_to_do}") from error
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold a JSON object, it has something else. {what_to_do}")
    return found


def read_table(path: Path, what_to_do: str = AGAIN) -> pd.DataFrame:
    """The table in a parquet file of a run.

    Raises:
        RunError: it is not there or cannot be read.
    """
    import pandas as pd
    from pyarrow import ArrowException

    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise RunError(f"{path} cannot be read ({why}). {what_to_do}") from error
