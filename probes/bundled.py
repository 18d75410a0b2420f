"""The models, coders and input sets that come with headscope, read from `data/index.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BundledModel:
    """A model that lies in the package: a folder in ordinary transformers format."""

    name: str
    path: Path
    kind: str
    default_set: str
    about: str
    architecture: str
    """Name of the transformers class."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BundledSet:
    """An input set that lies in the package: a folder with `examples.jsonl`."""

    name: str
    path: Path
    kind: str
    about: str
    n: int
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else the index says, such as `labels` or `vocabulary`."""


@dataclass(frozen=True)
class BundledCoder:
    """An autoencoder of head outputs of a bundled model, in a folder of headscope's own format.

    Attributes:
        model: the bundled model whose head outputs it reads.
        site: the attention layer.
        architecture: kind of coder.
    """

    name: str
    path: Path
    model: str
    site: str
    architecture: str
    about: str
    details: dict[str, Any] = field(default_factory=dict)


def data_root() -> Path:
    """The folder of bundled data: inside the package in a wheel, beside it in a checkout."""
    inside = Path(str(files("probes"))) / "data"
    return inside if inside.is_dir() else Path(str(files("probes"))).parent / "data"


def bundled_models() -> dict[str, BundledModel]:
    """Every bundled model by name; empty if the data was left out of the installation."""
    known = {"path", "kind", "default_set", "about", "class"}
    return {
        name: BundledModel(
            name=name,
            path=data_root() / entry["path"],
            kind=entry["kind"],
            default_set=entry.get("default_set", ""),
            about=entry.get("about", ""),
            architecture=entry.get("class", ""),
            details={key: value for key, value in entry.items() if key not in known},
        )
        for name, entry in _index().get("models", {}).items()
    }


def bundled_sets() -> dict[str, BundledSet]:
    """Every bundled input set by name; empty if the data was left out of the installation."""
    known = {"path", "kind", "about", "n"}
    return {
        name: BundledSet(
            name=name,
            path=data_root() / entry["path"],
            kind=entry["kind"],
            about=entry.get("about", ""),
            n=int(entry.get("n", 0)),
            details={key: value for key, value in entry.items() if key not in known},
        )
        for name, entry in _index().get("sets", {}).items()
    }


def bundled_coders() -> dict[str, BundledCoder]:
    """Every bundled coder by name; empty if the data was left out of the installation."""
    known = {"path", "model", "site", "coder", "about"}
    return {
        name: BundledCoder(
            name=name,
            path=data_root() / entry["path"],
            model=entry["model"],
            site=entry["site"],
            architecture=entry["coder"],
            about=entry.get("about", ""),
            details={key: value for key, value in entry.items() if key not in known},
        )
        for name, entry in _index().get("coders", {}).items()
    }


def _index() -> dict[str, Any]:
    path = data_root() / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
