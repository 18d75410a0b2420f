"""One head in full: scores, patterns on kept examples, curves, exemplars, heads like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.run_folder import Run
from analysis.similar_heads import most_unusual, standardised
from dashboard.drawn import clicked, draw
from dashboard.empty import tell
from dashboard.figures import head_strips, profile
from dashboard.guarded import fragment
from dashboard.head_lists import (
    draw_clusters,
    draw_exemplars,
    draw_features_of,
    draw_similar,
)
from dashboard.head_strips import Named, lines_by_measure
from dashboard.page import Page
from dashboard.pattern_section import chosen_example, draw_patterns
from dashboard.view import View
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

_CAUSAL = ("importance_", "atp_")
_MOST_STRIPS = 8
_UNUSUAL, _ALL = "most unusual", "all measures"
_CURVES = ("distance_profile", "hop_mass")


def show(view: View) -> None:
    """Everything about the chosen head."""
    heads = view.run.heads.frame[["tower", "layer", "head"]].drop_duplicates()
    names = [str(Head(t, int(n), int(h))) for t, n, h in heads.itertuples(index=False, name=None)]
    if not names:
        tell("This run has no heads yet.", "headscope score MODEL --data DATA --out runs/first")
        return
    head = Head.parse(view.choose("head", "head", names))
    example = chosen_example(view)
    _title(view, head, names)
    assert view.item is not None
    z, lines = _of_tower(str(view.item.path), view.item.stamp, head.tower, view.run)
    _scores(view, head, z, lines)
    st.subheader("On kept examples", anchor=False)
    if example is None:
        tell("This run keeps no example to look at.")
        _curve(view, head)
    else:
        draw_patterns(view, head, example, lambda: _curve(view, head))
    places = st.columns([3, 2], gap="medium")
    with places[0]:
        draw_similar(view, head, z)
    with places[1]:
        draw_clusters(view, head)
        draw_features_of(view, head)
    draw_exemplars(view, head)


def _title(view: View, head: Head, names: list[str]) -> None:
    place = names.index(str(head))
    with st.container(horizontal=True, vertical_alignment="center", key="head-title"):
        st.title(str(head), anchor=False, width="content")
        for step, sign in ((-1, "◂ {}"), (1, "{} ▸")):
            other = names[place + step] if 0 <= place + step < len(names) else ""
            st.button(
                sign.format(other.rsplit(".", 1)[-1] or "none"),
                key=f"head-step-{step}",
                disabled=not other,
                help=other or None,
                on_click=view.put,
                kwargs={"head": other},
            )


@fragment
def _scores(view: View, head: Head, z: pd.DataFrame, lines: dict[Named, pd.DataFrame]) -> None:
    left, right = st.columns(2, gap="medium")
    causal = [name for name in lines if name[0].startswith(_CAUSAL)]
    with left:
        which = st.segmented_control(
            "measures",
            [_UNUSUAL, _ALL],
            default=_UNUSUAL,
            required=True,
            key="strips",
            label_visibility="collapsed",
            bind="query-params",
        )
        unusual = [name for name in most_unusual(z, head) if name not in causal]
        unusual = [name for name in unusual if not name[0].startswith(_CAUSAL)]
        names = unusual[:_MOST_STRIPS] if which != _ALL else unusual
        if not names:
            # One head alone, or all alike: there is nothing to be unusual among.
            names = [name for name in lines if name not in causal][:_MOST_STRIPS]
        _strips(
            view,
            head,
            lines,
            names,
            "head-scores",
            "Scores",
            "Furthest from the mean of the tower's heads first, each measure by its furthest "
            "variant. Bar: 95 % interval; grey band: the null; right: value, and range of the "
            "strip. A click on a point opens its head.",
        )
    with right:
        if causal:
            _strips(
                view,
                head,
                lines,
                causal[:_MOST_STRIPS],
                "head-causal",
                "Causal effect",
                "How much worse the model does without this head (importance), or a gradient's "
                "estimate of it (atp). 0: the head does not matter here; below 0: it hurts.",
            )
        else:
            tell(
                "What happens without this head was not measured in this run.",
                "headscope score MODEL --data DATA --measures all,importance --out runs/causal",
            )


def _strips(
    view: View,
    head: Head,
    lines: dict[Named, pd.DataFrame],
    names: list[Named],
    key: str,
    title: str,
    caption: str,
) -> None:
    if not names:
        tell(f"Nothing was measured of {head}.")
        return

    def opened() -> None:
        found = [name for name in clicked(key) if isinstance(name, str)]
        if found and found[0] != str(head):
            view.put(head=found[0])

    def table() -> pd.DataFrame:
        import pandas as pd

        return pd.concat([lines[name] for name in names])

    n = int(max(lines[name]["n"].max() for name in names))
    figure = head_strips(lines, head, names, f"{title} · {head}")
    draw(figure, key, f"{caption} n up to {n}.", table, wide=True, on_select=opened)


def _curve(view: View, head: Head) -> None:
    try:
        profiles: Any = view.run.profiles
    except ValueError as error:
        tell(str(error))
        return
    mine = profiles[
        (profiles["tower"] == head.tower)
        & (profiles["layer"] == head.layer)
        & (profiles["head"] == head.head)
    ]
    known = list(dict.fromkeys(mine["measure"]))
    if not known:
        tell(f"There is no curve of {head} in this run.")
        return
    first = next((name for name in _CURVES if name in known), known[0])
    name = st.selectbox(
        "curve",
        known,
        index=known.index(first),
        key="curve",
        format_func=lambda one: one.replace("_", " "),
    )
    assert name is not None
    draw(
        profile(mine, head, name),
        "head-curve",
        "Where the head's weight lies, over what uniform attention would give (dotted). Mean over "
        "examples.",
        mine[mine["measure"] == name],
        wide=True,
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def _of_tower(
    path: str, stamp: tuple[float, ...], tower: str, _run: Run
) -> tuple[pd.DataFrame, dict[Named, pd.DataFrame]]:
    heads = _run.heads
    return standardised(heads, tower), lines_by_measure(heads, tower)


PAGE = Page("head", "Head", "One head in full: scores, patterns, exemplars, heads like it.", show)
