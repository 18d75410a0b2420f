"""Sinks: which heads have them, which tokens they are, what marks them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from analysis.head_table import HeadTable
from analysis.sinks.said import TOKEN_COLUMNS, sink_lines, sink_sentences
from dashboard.clickable_map import clickable
from dashboard.drawn import draw, escaped
from dashboard.empty import tell
from dashboard.figures import (
    heatmap,
    massive_by_layer,
    massive_dimensions,
    rate_by_threshold,
    sink_dimensions,
    sinks_by_layer,
    var_choice,
)  # fmt: skip
from dashboard.guarded import fragment
from dashboard.head_click import draw_heads
from dashboard.narrowed import only_measures
from dashboard.opened_runs import section_table
from dashboard.page import Page
from dashboard.sink_example import draw_example
from dashboard.sink_heads import KEYS, RATE, rate_variant, thresholds
from dashboard.view import View
from probes.depth import WRITING_TOWERS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SECTION = "vision"
_TABLES = ("sink_dimensions", "sink_tokens", "massive", "massive_entries", "patch_norms")
_HIGH = {
    RATE: "Share of sequences in which some key receives more than ε of the weight of all who may "
    "read it (Gu et al. 2025).",
    "sink_weight": "Weight that a key receives, mean over the queries that may read it (Gu et al. "
    "2025); high: a sink.",
    "first_key": "Mean weight on the first key; high: the head rests on the attention sink (Xiao "
    "et al. 2024).",
    "sink_mass": "Mean weight of a query on the sinks that the study found.",
    "sink_value_norm": "Norm of values at sinks over that at other keys; far below 1: what is read "
    "there is next to nothing.",
    "sink_key_norm": "Norm of keys at sinks over that at other keys.",
    "non_sink_ratio": "r of VAR: of the weight on the image, the share on no sink (Kang et al. "
    "2025).",
    "image_centric": "Share of queries at which VAR would choose the head (Kang et al. 2025).",
    "overfocus": "Likeness of all rows of a pattern; 1: it does not depend on the query (Guo et "
    "al. 2023).",
}
_MAP_PIXELS, _BESIDE_PIXELS, _PANEL_PIXELS, _TABLE_PIXELS = 900, 370, 440, 900
_ROWS = 10
_VAR = ("sink_mass", "non_sink_ratio", "image_centric")
_USUAL = 0.3
"""Of Gu et al."""


def show(view: View) -> None:
    """Heads, then what the study found, then an example."""
    heads = only_measures(view, _HIGH)
    assert view.item is not None
    tables = {name: section_table(view.item, SECTION, name) for name in _TABLES}
    found = {name: table for name, table in tables.items() if table is not None and len(table)}
    if not len(heads) and not found:
        tell("No measure of sinks was taken in this run. To take them:", _command(view))
        return
    tower = view.choose("tower", "tower", _towers(view.run.heads.towers, heads.towers))
    if len(heads):
        _heads(view, heads, tower)
    if "massive" not in found:
        tell("Which tokens are sinks was not looked for in this run. To do so:", _command(view))
        return
    st.subheader("What was found", anchor=False)
    _said(view, found)
    st.subheader("Massive activations", anchor=False)
    _activations(found, tower)
    st.subheader("Sink tokens", anchor=False)
    _tokens(view, found, tower)


def _towers(every: list[str], measured: list[str]) -> list[str]:
    """Those with measures first: of encoders there may be none."""
    texts = [name for name in measured if name in WRITING_TOWERS]
    return list(dict.fromkeys([*texts, *measured, *every]))


def _command(view: View) -> str:
    model = view.item.model if view.item else ""
    return f"headscope score {model or 'MODEL'} --measures all,sinks --out runs/sinks"


@fragment
def _heads(view: View, heads: HeadTable, tower: str) -> None:
    mine = heads.select(tower=tower)
    known = [name for name in _HIGH if name in mine.measures]
    if not known:
        tell(f"No measure of sinks was taken of {tower} in this run.", _command(view))
        return
    own = replace(view, controls=st.container(horizontal=True, key="controls-sinks"))
    measure = own.choose("measure", "measure", known, text=lambda name: name.replace("_", " "))
    epsilon, key = None, ""
    if measure == RATE:
        keys = [name for name in KEYS if thresholds(mine, tower, name)]
        key = own.choose("sink-key", "which key", keys, text=KEYS.__getitem__)
        epsilon = own.slide("eps", "ε", thresholds(mine, tower, key), _USUAL)
        variant = rate_variant(key, epsilon)
    else:
        variant = own.choose("variant", "variant", mine.variants(measure))
    beside = st.container(horizontal=True, gap="medium", key="sinks-heads")
    figure = clickable(heatmap(mine, measure, tower, variant), tower)
    with beside.container(width=min(int(figure.layout.width), _MAP_PIXELS)):
        caption = f"{_HIGH[measure]} A click opens a head."
        table = mine.lines(measure, tower, variant)
        draw_heads(view, figure, "sinks-map", caption, table, wide=False)
    if measure == RATE:
        with beside.container(width=_BESIDE_PIXELS):
            draw(
                rate_by_threshold(mine, tower, epsilon),
                "sinks-rate",
                "How the share of sequences with a sink falls as more weight is asked for; the "
                "dashed line is the threshold of the map.",
                mine.select(RATE).frame,
                wide=True,
            )
    if all(name in mine.measures for name in _VAR) and "visual" in mine.variants(_VAR[0], tower):
        assert view.item is not None
        with beside.container(width=_BESIDE_PIXELS):
            draw_heads(
                view,
                _var(str(view.item.path), view.item.stamp, tower, mine),
                "sinks-var",
                "VAR (Kang et al. 2025) takes weight from sinks in heads that look at the image "
                "and see more of it than its sinks: r of at least 0.5 (dashed). Colour: share of "
                "queries at which it would.",
                mine.select(_VAR).frame,
            )


@st.cache_resource(max_entries=16, show_spinner=False)
def _var(path: str, stamp: tuple[float, ...], tower: str, _heads: HeadTable) -> go.Figure:
    # It is the same at every threshold, over which a slider is drawn.
    return var_choice(_heads, tower)


def _said(view: View, found: dict[str, pd.DataFrame]) -> None:
    sentences = sink_sentences(found, view.run.heads.frame)
    st.markdown("\n".join(f"- {escaped(sentence)}" for sentence in sentences))
    rows = sink_lines(found["sink_tokens"]) if "sink_tokens" in found else []
    if not rows:
        st.text("No token is a sink in half of the examples or more.")
        return
    st.dataframe(
        [dict(zip(TOKEN_COLUMNS, row, strict=True)) for row in rows],
        hide_index=True,
        width=_TABLE_PIXELS,
        height="content" if len(rows) <= _ROWS else 35 * _ROWS,
        key="sinks-table",
    )


def _activations(found: dict[str, pd.DataFrame], tower: str) -> None:
    if tower not in set(found["massive"]["tower"]):
        tell(f"Activations of {tower} were not looked at: its residual stream is not known.")
        return
    beside = st.container(horizontal=True, gap="medium", key="sinks-massive")
    with beside.container(width=_PANEL_PIXELS):
        draw(
            massive_by_layer(found["massive"], tower),
            "sinks-massive-layers",
            "Mean over examples of the largest |x| over the median |x| of the residual stream. "
            "Thousands are massive activations (Sun et al. 2024); normal noise reaches 5 to 7.",
            found["massive"],
            wide=True,
        )
    if "massive_entries" in found and tower in set(found["massive_entries"]["tower"]):
        figure = massive_dimensions(found["massive_entries"], tower)
        with beside.container(width=max(int(figure.layout.width), _PANEL_PIXELS)):
            draw(
                figure,
                "sinks-massive-dimensions",
                "A column that is bright in all layers is a massive dimension. Bare cells are not "
                "among the twelve commonest entries of their layer.",
                found["massive_entries"],
            )
    ranking = found.get("sink_dimensions")
    if ranking is not None and tower in set(ranking["tower"]):
        with beside.container(width=_PANEL_PIXELS):
            draw(
                sink_dimensions(ranking),
                "sinks-dimensions",
                "A dimension marks sinks where it is massive at most of them, and at least four "
                "times as large there as at other tokens, over the RMS.",
                ranking,
                wide=True,
            )


def _tokens(view: View, found: dict[str, pd.DataFrame], tower: str) -> None:
    tokens = found.get("sink_tokens")
    if tokens is None or tower not in set(tokens["tower"]):
        tell(f"No token of {tower} is a sink: none is massive in a dimension of sinks.")
        return
    try:
        figure = sinks_by_layer(tokens, tower)
    except ValueError as error:
        tell(str(error))
        return
    beside = st.container(horizontal=True, gap="medium", key="sinks-tokens")
    with beside.container(width=_PANEL_PIXELS):
        draw(
            figure,
            "sinks-received",
            "High: queries look there whatever they ask. Mean over heads and over the examples in "
            "which the place is a sink; hover has the interval.",
            tokens,
            wide=True,
        )
    with beside.container(width="stretch"):
        draw_example(view, tokens, tower)


PAGE = Page("sinks", "Sinks", "Tokens that draw weight whatever is asked, and their heads.", show)
