"""What lies in the folders that the app was given: runs, evaluations, coders, and in what state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.run_files import MANIFEST, PLAN, RunError, read_json

RUN, EVALUATION, CODERS, FEATURES = "run", "evaluation", "coders", "features"
_CODER = "coder.json"
_DEEPEST = 2


@dataclass(frozen=True)
class Item:
    """A folder that a page may open.

    Attributes:
        name: in the address: its path below the place that was given; of its own for a place that
            is such a folder itself.
        kind: ``run``, ``evaluation``, ``coders`` or ``features``.
        model, data: as it says; empty where it does not.
        problem: why it cannot be read, in a sentence; else empty.
        stamp: changes whenever something was written; part of every cache's key.
    """

    name: str
    path: Path
    kind: str
    model: str
    data: str
    created: str
    finished: bool
    problem: str
    stamp: tuple[float, ...]


@dataclass(frozen=True)
class Shelf:
    """All items, newest first."""

    items: tuple[Item, ...]
    places: tuple[Path, ...]

    def of(self, kind: str) -> list[Item]:
        """Those of one kind, newest first."""
        return [item for item in self.items if item.kind == kind]

    def named(self, name: str) -> Item | None:
        """The one of a name; nothing outside of the places has one."""
        return next((item for item in self.items if item.name == name), None)


def read_shelf(places: Iterable[Path]) -> Shelf:
    """What lies in some places: each a run's folder (or the like), or a folder of such."""
    given = tuple(places)
    found: dict[str, Item] = {}
    for place in given:
        for path, name in _folders(place):
            while name in found:
                name = f"{name}+"
            found[name] = _item(path, name)
    items = sorted(found.values(), key=lambda item: (item.created, item.name), reverse=True)
    return Shelf(tuple(items), given)


def _folders(place: Path) -> Iterator[tuple[Path, str]]:
    if _is_item(place):
        yield place, place.resolve().name
        return
    yield from _below(place, place, _DEEPEST)


def _below(place: Path, folder: Path, levels: int) -> Iterator[tuple[Path, str]]:
    try:
        children = sorted(item for item in folder.iterdir() if item.is_dir())
    except OSError:
        return
    for child in children:
        if child.name.startswith("."):
            continue
        if _is_item(child):
            yield child, child.relative_to(place).as_posix()
        elif levels > 1:
            yield from _below(place, child, levels - 1)


def _is_item(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (PLAN, MANIFEST, _CODER))


def _item(path: Path, name: str) -> Item:
    stamp = tuple(
        file.stat().st_mtime if file.exists() else 0.0
        for file in (path / PLAN, path / MANIFEST, path / _CODER, path / "journal", path)
    )
    finished = (path / MANIFEST).is_file() or (path / _CODER).is_file()
    if (path / _CODER).is_file() and not (path / PLAN).is_file():
        return Item(name, path, CODERS, "", "", "", True, "", stamp)
    try:
        if not (path / PLAN).is_file() and read_json(path / MANIFEST).get("kind") == FEATURES:
            about = read_json(path / MANIFEST)
            model, data = str(about.get("model", "")), str(about.get("data", ""))
            return Item(name, path, FEATURES, model, data, "", True, "", stamp)
        plan = read_json(path / PLAN)
    except RunError as error:
        return Item(name, path, RUN, "", "", "", finished, str(error), stamp)
    model, data = plan.get("model"), plan.get("data")
    return Item(
        name,
        path,
        _kind(plan),
        _text(model, "name"),
        _text(data, "name"),
        str(plan.get("created", "")),
        finished,
        "",
        stamp,
    )


def _kind(plan: dict[str, Any]) -> str:
    kind = str(plan.get("kind", ""))
    if kind == "evaluation":
        return EVALUATION
    return CODERS if "sae" in kind else RUN


def _text(value: Any, key: str) -> str:
    return str(value.get(key, "")) if isinstance(value, dict) else str(value or "")
