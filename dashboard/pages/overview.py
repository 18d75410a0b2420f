"""The first page: one measure of all heads as a map, the finder beside it, other measures below."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from analysis.finder import Found, QueryError, label_of
from analysis.head_table import HeadTable
from analysis.precision import rounded
from dashboard.clickable_map import clickable
from dashboard.drawn import clicked, draw, escaped
from dashboard.empty import tell
from dashboard.figures import heatmap, small_multiples
from dashboard.finder_table import found_table, values_table
from dashboard.guarded import fragment
from dashboard.measure_words import said_of
from dashboard.page import Page
from dashboard.run_state import picked_row, show_run
from dashboard.view import View

_MAP, _OTHERS, _FOUND = "overview-map", "overview-others", "overview-found"
_OTHER_MEASURES = 6
_TELLING = (
    "importance_cross_entropy", "vhd", "sink_weight", "induction", "previous_token",
    "entropy_normalised", "text_share", "mean_hop", "attention_distance_ratio",
    "contribution_norm", "head_similarity",
)  # fmt: skip
"""Shown below first, where a run has them: they tell heads apart in different ways."""
_MOST_FOUND = 200
_EXAMPLE = "induction > 0.3 and sink_weight < 0.1"
_HELP = (
    "Measures and numbers with < <= > >= == !=, joined by `and`, `or`, `not`, parentheses. "
    "Variants in brackets: `sink_rate[eps=0.3] > 0.5`. `layer`, `head` and `tower` too. "
    "Two measures: `induction > previous_token`; their ends: `induction.ci_low > "
    "induction.null_high`. Ranked by the first measure, or `by MEASURE`, `by MEASURE ascending`."
)


def show(view: View) -> None:
    """The map of the chosen measure, the finder, six other measures, the run's state."""
    heads = view.run.heads
    if not len(heads):
        tell("This run has no head yet: no shard is done.")
        show_run(view)
        return
    tower = view.choose("tower", "tower", heads.towers)
    known = heads.select(tower=tower)
    measure = view.choose("measure", "measure", known.measures, _first(known))
    variant = view.choose("variant", "variant", known.variants(measure))
    there = known.select(measure, variant=variant).frame["inputs"].unique().tolist()
    inputs = view.choose("inputs", "inputs", there)
    _map_and_finder(view, known, tower, (measure, variant, inputs), len(there) > 1)
    _others(view, known, tower, measure)
    show_run(view)


@fragment
def _map_and_finder(
    view: View, heads: HeadTable, tower: str, chosen: tuple[str, str, str], several: bool
) -> None:
    asked_for = view.value("head")
    item = view.item
    assert item is not None
    figure = _plain_map(str(item.path), item.stamp, tower, chosen, heads)
    with st.container(horizontal=True, key="overview-main"):
        left = st.container(width=int(figure.layout.width))
        right = st.container(width="stretch", key="overview-finder")
    label = label_of(*chosen[:2], chosen[2] if several else None)
    with right:
        query, found = _asked(view, heads, label)
    marked = set(found.names) if found is not None and query else set()
    with left:
        numbers = heads.select(chosen[0], variant=chosen[1], inputs=chosen[2])
        draw(
            clickable(figure, tower, marked | {asked_for}),
            _MAP,
            _caption(numbers, chosen[0]),
            numbers.frame,
            on_select=lambda: None,
        )
    picked = [str(name) for name in clicked(_MAP)]
    with right:
        row = _listed(found, query) if found is not None else None
    if row is not None and found is not None:
        picked.append(found.names[row])
    if picked:
        _go_to(view, picked[-1])
        asked_for = picked[-1]
    if asked_for and "head" not in view.pages:
        _values(heads, asked_for)


def _asked(view: View, heads: HeadTable, label: str) -> tuple[str, Found | None]:
    """The query line, and what it finds; without a query, all heads by the map's measure."""
    query = replace(view, controls=st.container()).write(
        "query", "find heads", hint=f"for example {_EXAMPLE}"
    )
    try:
        found = heads.find(query or f"by {label}", by=None)
    except QueryError as error:
        st.text(str(error), help=_HELP)
        return query, None
    if query:
        undecided = f"; {found.undecided} not measured" if found.undecided else ""
        said = f"{len(found)} of {found.asked} heads, by {found.ranked_by}{undecided}"
    else:
        said = f"All heads by {label}"
    st.markdown(escaped(said), help=_HELP)
    return query, found


def _listed(found: Found, query: str) -> int | None:
    """The ranked table; the row that was clicked."""
    if not len(found):
        st.text("No head fulfils this.")
        return None
    shown = replace(found, frame=found.frame.head(_MOST_FOUND))
    event = st.dataframe(
        found_table(shown),
        hide_index=True,
        height=min(36 + 35 * len(shown), 456),
        # Another query is another table: what was clicked in one is not clicked in the next.
        key=f"{_FOUND}-{found.ranked_by}-{query}",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
    )
    if len(found) > _MOST_FOUND:
        st.text(f"The first {_MOST_FOUND} of {len(found)} are listed.")
    row = picked_row(event)
    return row if row is not None and row < len(shown) else None


def _go_to(view: View, name: str) -> None:
    if "head" in view.pages:
        view.open("head", head=name)
    view.note("head", name)


def _values(heads: HeadTable, name: str) -> None:
    tower, _, place = name.rpartition(".L")
    layer, _, head = place.partition("H")
    if tower not in heads.towers or not (layer.isdecimal() and head.isdecimal()):
        return
    values = values_table(heads, tower, int(layer), int(head))
    if values.empty:
        tell(f"Nothing was measured of {name}.")
        return
    st.markdown(f"### {escaped(name)}")
    st.dataframe(values, hide_index=True, key="overview-values")


def _caption(numbers: HeadTable, measure: str) -> str:
    lines = numbers.frame.dropna(subset="value")
    if lines.empty:
        return escaped(f"{measure} was measured of no head here.")
    top = lines.loc[lines["value"].idxmax()]
    highest = rounded(top["value"], top["ci_low"], top["ci_high"])
    said = f"{said_of(measure)} Highest: L{top['layer']}H{top['head']}, {highest} {top['unit']}"
    said += f" (± half of the 95 % bootstrap interval, n = {int(lines['n'].max())})."
    return escaped(f"{said.strip()} A click on a cell opens the head.")


def _others(view: View, heads: HeadTable, tower: str, measure: str) -> None:
    names = [*_TELLING, *heads.measures]
    others = [n for n in dict.fromkeys(names) if n in heads.measures and n != measure]
    others = [name for name in others if _drawable(heads, name)][:_OTHER_MEASURES]
    if not others or view.item is None:
        return
    figure = _small(str(view.item.path), view.item.stamp, tower, tuple(others), heads)
    draw(
        figure,
        _OTHERS,
        "Other measures of the same heads, each on a scale of its own.",
        lambda: heads.select(others).frame,
    )


def _drawable(heads: HeadTable, measure: str) -> bool:
    lines = heads.select(measure, variant=heads.variants(measure)[0]).frame
    return lines["inputs"].nunique() == 1 and bool(lines["value"].notna().any())


@st.cache_resource(max_entries=32, show_spinner=False)
def _plain_map(
    path: str,
    stamp: tuple[float, ...],
    tower: str,
    chosen: tuple[str, str, str],
    _heads: HeadTable,
) -> Any:
    return heatmap(_heads, chosen[0], tower, *chosen[1:])


@st.cache_resource(max_entries=32, show_spinner=False)
def _small(
    path: str, stamp: tuple[float, ...], tower: str, measures: tuple[str, ...], _heads: HeadTable
) -> Any:
    return small_multiples(_heads, measures, tower, title="Other measures of the same heads")


def _first(heads: HeadTable) -> str:
    return next((name for name in _TELLING if name in heads.measures), heads.measures[0])


PAGE = Page("overview", "Overview", "One measure of all heads at a glance.", show)
