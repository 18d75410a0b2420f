"""The frame around every page: navigation, the run that is looked at, and what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis.run_files import RunError
from analysis.run_folder import Run
from dashboard.empty import tell
from dashboard.guarded import guarded
from dashboard.look import apply_look
from dashboard.opened_runs import opened, shelf_of
from dashboard.page import Page, all_pages
from dashboard.shelf import RUN, Item, Shelf
from dashboard.view import View


def main(places: Sequence[str]) -> None:
    """Draw the app; called at each rerun.

    Args:
        places: folders of runs, or of folders of runs.
    """
    st.set_page_config(page_title="headscope", layout="wide", initial_sidebar_state="collapsed")
    apply_look()
    shown: dict[str, st.Page] = {}
    for page in all_pages():
        shown[page.name] = st.Page(
            partial(draw_page, page, tuple(places), shown),
            title=page.title,
            url_path=page.name,
            default=page.name == "overview",
        )
    st.navigation(list(shown.values()), position="top").run()


def draw_page(page: Page, places: tuple[str, ...], pages: Mapping[str, st.Page]) -> None:
    """Draw one page below the control row, or say in a sentence why it cannot be.

    Args:
        pages: that it may go to, by name.
    """
    shelf = shelf_of(places)
    controls = st.container(horizontal=True, vertical_alignment="bottom", key="controls")
    item: Item | None = None
    run: Run | None = None
    if page.needs_run:
        item = _chosen(shelf, controls)
        if item is None:
            _nothing(places)
            return
        try:
            run = opened(item)
        except (RunError, ValueError) as error:
            tell(str(error))
            return
        if not run.finished:
            _unfinished(run)
    with guarded(f"run {item.name!r}" if item else "this page"):
        page.show(View(shelf, item, run, controls, pages))


def _chosen(shelf: Shelf, controls: DeltaGenerator) -> Item | None:
    runs = shelf.of(RUN)
    if not runs:
        return None
    by_name = {item.name: item for item in runs}
    asked = st.query_params.get("run")
    if asked and asked not in by_name:
        tell(f"There is no run {asked!r} here; the newest one is shown.")
    # Without a default the address names the run always: a copied one opens this run, not the
    # newest of its day.
    if asked not in by_name and st.session_state.get("run") not in by_name:
        st.session_state["run"] = runs[0].name
    with controls:
        name = st.selectbox("run", list(by_name), index=None, key="run", bind="query-params")
    return by_name[name or runs[0].name]


def _nothing(places: Sequence[str]) -> None:
    where = ", ".join(str(Path(place)) for place in places)
    tell(
        f"There is no run in {where}. Make one, then reload this page:",
        "headscope score shapes-llava --measures all,importance,vhd,sinks,atlas --out runs/first",
    )


def _unfinished(run: Run) -> None:
    done, total = run.shards
    being = "is being written" if run.being_written else "is unfinished"
    tell(f"This run {being}: {done} of {total} shards are done. What is there is shown.")
