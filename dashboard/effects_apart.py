"""The parts of the importance page that look behind the mean: by class, and by example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.run_files import AGAIN, RunError
from dashboard.drawn import draw
from dashboard.figures import effect_by_example, effects_by_class
from dashboard.guarded import fragment
from dashboard.opened_runs import section_table
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd

_SECTION = "importance"


def draw_by_class(view: View, measure: str, tower: str, unit: str) -> None:
    """The effect on each class; nothing where the data has no classes."""
    assert view.item is not None
    classes = section_table(view.item, _SECTION, "classes")
    if classes is None:
        return
    mine = classes[(classes["measure"] == measure) & (classes["tower"] == tower)]
    if mine.empty:
        return
    draw(
        effects_by_class(classes, measure, tower, unit),
        "importance-classes",
        "Blue: the model is better with the head on this class; red: worse. The heads with the "
        "largest effect on any class, in the order of the layers.",
        mine,
        wide=True,
    )


@fragment
def draw_by_example(view: View, names: list[str], measure: str, variant: str, unit: str) -> None:
    """The effect of a head on each example; nothing where the run has none.

    Args:
        names: of the heads to choose from, the first shown at first.
    """
    assert view.item is not None
    file = view.item.path / _SECTION / "examples.parquet"
    if not file.is_file():
        return
    known = set(_columns(str(file), file.stat().st_mtime))
    of_head = {name: f"{measure} {variant} {name}" for name in names}
    kept = [name for name, column in of_head.items() if column in known]
    if not kept:
        return
    own = replace(view, controls=st.container(horizontal=True, key="controls-by-example"))
    asked = view.value("head")
    head = own.choose("one-head", "head", kept, asked if asked in kept else None)
    lines = _column(str(file), file.stat().st_mtime, of_head[head])
    draw(
        effect_by_example(lines, of_head[head], head, unit),
        "importance-examples",
        "A head may cost little on most examples and much on a few. Means over what is read of "
        "each example.",
        lines,
        wide=True,
    )


@st.cache_data(max_entries=8, show_spinner=False)
def _columns(file: str, stamp: float) -> list[str]:
    import pyarrow.parquet as parquet

    try:
        return list(parquet.read_schema(file).names)
    except (OSError, ValueError) as error:
        raise RunError(f"{Path(file)} cannot be read ({error}). {AGAIN}") from error


@st.cache_data(max_entries=64, show_spinner=False)
def _column(file: str, stamp: float, column: str) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(file, columns=["example", column])
    except (OSError, ValueError) as error:
        raise RunError(f"{Path(file)} cannot be read ({error}). {AGAIN}") from error
