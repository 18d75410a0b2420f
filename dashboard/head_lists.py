"""What else is known of one head: its exemplars, its clusters, heads like it, its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from analysis.atlas.atlas_files import SECTION
from analysis.similar_heads import similar_heads
from dashboard.drawn import escaped
from dashboard.empty import tell
from dashboard.exemplar_words import event_table, of_head, pair_table
from dashboard.guarded import fragment
from dashboard.opened_runs import section_table
from dashboard.view import View
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

_ATLAS = "headscope score MODEL --data DATA --measures all,atlas --out runs/with-atlas"
_ROWS_PIXELS = 320


def draw_similar(view: View, head: Head, z: pd.DataFrame) -> None:
    """Heads of the tower that measure most like it; a click on a line opens one."""
    st.subheader("Similar heads", anchor=False)
    table = similar_heads(z, head)
    if table.empty:
        tell("No other head of this tower can be compared with this one.")
        return
    names = [f"{line.tower}.L{line.layer}H{line.head}" for line in table.itertuples()]
    shown = table.assign(head=names)[["head", "distance", "apart", "apart_by"]]

    def opened() -> None:
        rows = st.session_state["head-similar"]["selection"]["rows"]
        if rows:
            view.put(head=names[rows[0]])

    st.dataframe(
        shown,
        key="head-similar",
        hide_index=True,
        on_select=opened,
        selection_mode="single-row",
        column_config={
            "distance": st.column_config.NumberColumn("distance (sd)", format="%.2f"),
            "apart": "differs most in",
            "apart_by": st.column_config.NumberColumn("by (sd)", format="%+.1f"),
        },
        height=_ROWS_PIXELS,
    )
    st.caption(
        "Root mean square difference over all measures, in standard deviations over the heads of "
        "the tower; 0 is the same in everything that was measured. Tick a line to open its head."
    )


def draw_clusters(view: View, head: Head) -> None:
    """The clusters of the atlas that the head's patterns fall into, and its features' page."""
    assert view.item is not None
    st.subheader("Clusters", anchor=False)
    shares = section_table(view.item, SECTION, "head_shares")
    mix = section_table(view.item, SECTION, "head_mix")
    if shares is None or mix is None:
        tell("This run has no atlas, so no clusters.", _ATLAS)
    else:
        mine, verdict = of_head(shares, head), of_head(mix, head)
        if mine.empty:
            tell("The atlas has no map with this head on it.")
        else:
            st.dataframe(
                mine.sort_values("share", ascending=False)[["cluster", "name", "share"]],
                hide_index=True,
                column_config={
                    "share": st.column_config.ProgressColumn(
                        "share of its patterns", min_value=0.0, max_value=1.0, format="%.2f"
                    )
                },
            )
        for line in verdict.itertuples():
            st.caption(escaped(f"{line.patterns} patterns, {line.verdict}. {line.own_sentence}"))


def draw_features_of(view: View, head: Head) -> None:
    """The way to features that coders of the head's layer found."""
    if "features" not in view.pages:
        return
    if st.button("Features of this head", key="head-features"):
        view.open("features", head=str(head))


@fragment
def draw_exemplars(view: View, head: Head) -> None:
    """Events by rank and by decile, and pairs of tokens, of the run's atlas."""
    assert view.item is not None
    st.subheader("Over the data set", anchor=False)
    events = section_table(view.item, SECTION, "events")
    pairs = section_table(view.item, SECTION, "pairs")
    if events is None or pairs is None:
        tell("This run has no exemplars; they come with an atlas.", _ATLAS)
        return
    events, pairs = of_head(events, head), of_head(pairs, head)
    if events.empty and pairs.empty:
        tell(f"The atlas of this run collected nothing of {head}.")
        return
    left, right = st.columns([3, 2], gap="medium")
    with left:
        kinds = {"strongest": "strongest", "decile": "by tenths of all queries"}
        with st.container(horizontal=True):
            kind = st.segmented_control(
                "exemplars",
                list(kinds),
                default="decile",
                required=True,
                format_func=kinds.__getitem__,
                key="exemplars",
            )
            by = st.segmented_control(
                "ranked by", ["weight", "contribution"], default="weight", required=True, key="by"
            )
        table = event_table(events, kind or "decile", by or "weight")
        st.dataframe(
            table,
            hide_index=True,
            height=_ROWS_PIXELS,
            column_config={by or "weight": st.column_config.NumberColumn(format="%.3f")},
        )
        st.caption(
            "Queries of the whole data set and the key outside of sinks that each reads most; "
            "⟦ ⟧ marks the token. Tenth 10 holds the strongest tenth of all queries, drawn evenly "
            "within it. contribution: how far the key moves the residual stream, in its own units."
        )
    with right:
        st.dataframe(
            pair_table(pairs),
            hide_index=True,
            height=_ROWS_PIXELS + 72,
            column_config={
                "share": st.column_config.NumberColumn("share of weight", format="%.3f"),
                "lift": st.column_config.NumberColumn("lift", format="%.1f"),
            },
        )
        st.caption(
            "Which tokens the head brings together: share of all its weight, and lift over even "
            "attention to what each query may read (1: no preference)."
        )
