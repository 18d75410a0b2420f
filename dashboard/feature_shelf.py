"""Which indexes of features there are: beside coders, in runs, by themselves, and bundled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from analysis.run_files import MANIFEST, RunError, read_json
from dashboard.shelf import Shelf
from probes.bundled import bundled_coders
from sae.feature_index.form import FOLDER, KIND
from sae.feature_index.reading import FeatureIndex


@dataclass(frozen=True)
class IndexItem:
    """An index that the page may open.

    Attributes:
        name: in the address.
        site: the attention layer, such as ``language.L2``.
        stamp: changes whenever it is written anew.
    """

    name: str
    path: Path
    site: str
    model: str
    stamp: float


def feature_indexes(shelf: Shelf) -> list[IndexItem]:
    """All that can be opened, those of the shelf first, then those of bundled coders."""
    found: dict[str, IndexItem] = {}
    for name, path in (*_on_shelf(shelf), *_bundled()):
        item = _item(name, path)
        if item is not None:
            found.setdefault(name, item)
    return list(found.values())


def index_of_head(shelf: Shelf, model: str, site: str) -> IndexItem | None:
    """The index that has the features of a model's layer, None if there is none."""
    return next(
        (one for one in feature_indexes(shelf) if one.model == model and one.site == site), None
    )


def opened_index(item: IndexItem) -> FeatureIndex:
    """The index, its list read.

    Raises:
        RunError: it cannot be read.
    """
    return _opened(str(item.path), item.stamp)


@st.cache_resource(max_entries=4, show_spinner=False)
def _opened(path: str, stamp: float) -> FeatureIndex:
    return FeatureIndex.open(path)


def _on_shelf(shelf: Shelf) -> Iterator[tuple[str, Path]]:
    for item in shelf.items:
        yield item.name, item.path
        yield item.name, item.path / FOLDER
        # A training has a folder for each of its coders.
        for folder in sorted(item.path.glob(f"*/{FOLDER}")):
            yield f"{item.name}/{folder.parent.name}", folder


def _bundled() -> Iterator[tuple[str, Path]]:
    for name, coder in bundled_coders().items():
        yield f"{name} (bundled)", coder.path / FOLDER


def _item(name: str, path: Path) -> IndexItem | None:
    file = path / MANIFEST
    if not file.is_file():
        return None
    found = _about(str(file), file.stat().st_mtime)
    if found is None:
        return None
    return IndexItem(name, path, *found, file.stat().st_mtime)


@st.cache_data(max_entries=256, show_spinner=False)
def _about(file: str, stamp: float) -> tuple[str, str] | None:
    """Site and model of an index, None of what is no index or damaged."""
    try:
        about = read_json(Path(file))
    except RunError:
        return None
    if about.get("kind") != KIND:
        return None
    return str(about.get("site", "")), str(about.get("model", ""))
