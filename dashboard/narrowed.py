"""A few measures of a run's head table, cut out once: what is asked of them is then quick."""

from __future__ import annotations

from collections.abc import Iterable

import streamlit as st

from analysis.head_table import HeadTable
from analysis.run_folder import Run
from dashboard.view import View


def only_measures(view: View, measures: Iterable[str]) -> HeadTable:
    """The lines of these measures alone; those that the run has not are left out."""
    assert view.item is not None
    return _narrowed(str(view.item.path), view.item.stamp, tuple(measures), view.run)


@st.cache_resource(max_entries=16, show_spinner=False)
def _narrowed(
    path: str, stamp: tuple[float, ...], measures: tuple[str, ...], _run: Run
) -> HeadTable:
    return _run.heads.select(measure=measures)
