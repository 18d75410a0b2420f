"""Runs and tables opened once and kept, as long as nothing is written to their folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.run_files import RunError, read_table
from analysis.run_folder import Run, open_run
from dashboard.shelf import Item, Shelf, read_shelf

if TYPE_CHECKING:
    import pandas as pd

_LOOK_AGAIN_SECONDS = 3
_RUNS_KEPT = 8


@st.cache_data(ttl=_LOOK_AGAIN_SECONDS, show_spinner=False)
def shelf_of(places: tuple[str, ...]) -> Shelf:
    """What lies in the places, looked at again every few seconds."""
    return read_shelf(Path(place) for place in places)


def opened(item: Item) -> Run:
    """The run of an item, its head table read.

    Raises:
        RunError: it cannot be read; the sentence says why.
    """
    if item.problem:
        raise RunError(item.problem)
    return _opened(str(item.path), item.stamp)


@st.cache_resource(max_entries=_RUNS_KEPT, show_spinner=False)
def _opened(path: str, stamp: tuple[float, ...]) -> Run:
    run = open_run(path)
    run.heads  # noqa: B018  (read now, so that what is damaged is said here)
    return run


def section_table(item: Item, section: str, name: str) -> pd.DataFrame | None:
    """A table of a finished section; None where it is not there.

    Raises:
        RunError: it cannot be read.
    """
    file = item.path / section / f"{name}.parquet"
    if not (item.path / section / "manifest.json").is_file() or not file.is_file():
        return None
    return _table(str(file), file.stat().st_mtime)


def item_table(item: Item, name: str) -> pd.DataFrame:
    """A table that lies in the folder of an item itself, such as those of an evaluation.

    Raises:
        RunError: it is not there or cannot be read.
    """
    file = item.path / f"{name}.parquet"
    return _table(str(file), file.stat().st_mtime if file.exists() else 0.0)


@st.cache_data(max_entries=64, show_spinner=False)
def _table(file: str, stamp: float) -> pd.DataFrame:
    return read_table(Path(file))
