"""The pattern atlas of a run: the map of all patterns, what is lassoed, the kinds there are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.precision import plain
from analysis.run_files import RunError
from dashboard.atlas_choices import ChosenPoints, choose_points
from dashboard.components.head_list import head_list
from dashboard.components.pattern_view import pattern_view
from dashboard.drawn import clicked, draw, escaped
from dashboard.empty import tell
from dashboard.figures import head_mix, prototypes
from dashboard.guarded import fragment
from dashboard.lasso import Lasso, heads_inside
from dashboard.opened_atlas import OpenedAtlas, atlases_of, opened_atlas, sheet_around
from dashboard.page import Page
from dashboard.pattern_map import head_names
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd

_MAP, _PATTERN, _HEADS, _MIX = "atlas-map", "atlas-pattern", "atlas-heads", "atlas-mix"
_CLEARED = "atlas-cleared"
_HEADS_LISTED = 200
_HEIGHT = 560


def show(view: View) -> None:
    """The map of one tower with what is chosen on it, and the kinds of patterns below."""
    found = atlases_of(view.run)
    ready = [name for name, finished in found.items() if finished]
    if not ready:
        _nothing(view, bool(found))
        return
    section = view.choose("map", "map", ready, "atlas")
    atlas = opened_atlas(view.run, section)
    if not atlas.towers:
        tell(str(atlas.about["verdict"]), _command(view))
        return
    tower = view.choose("tower", "tower", atlas.towers)
    points = atlas.of(atlas.points, tower)
    if points.empty:
        why = atlas.about["refused"].get(tower, "it has no patterns")
        tell(f"There is no map of {tower}: {why}", _command(view))
        return
    told = atlas.about["towers"][tower]
    chosen = choose_points(view, atlas, points)
    figure = chosen.figure(told["explained"])
    scope = f"{section}.{tower}.{chosen.plane}"
    figure.update_layout(
        dragmode="lasso",
        selections=_lasso(view, scope).shapes(),
        meta=st.session_state.get(_CLEARED, 0),
        legend={"orientation": "h", "y": -0.02, "yanchor": "top", "x": 0},
        margin={"l": 8, "r": 8, "b": 8},
        height=_HEIGHT,
    )
    st.markdown(escaped(f"{tower}: {told['verdict']}"))
    _map(view, atlas, chosen, figure, scope)
    _kinds(view, atlas, tower)
    _told(atlas, told, tower)


@fragment
def _map(view: View, atlas: OpenedAtlas, chosen: ChosenPoints, figure: Any, scope: str) -> None:
    points = chosen.points
    left, right = st.columns([3, 1], gap="medium")
    with left:
        draw(
            figure,
            _MAP,
            escaped(
                f"Each point is how one head attends on one example. {chosen.meaning} Pointing "
                "shows the pattern, a click keeps it; a lasso or a box lists heads. "
            )
            + "Patterns are compared by their measures and by an autoencoder; source of the map: "
            "[McInnes, Healy and Melville 2018](https://arxiv.org/abs/1802.03426).",
            points.drop(columns=["x", "y"]).assign(x=points["x"], y=points["y"]),
            wide=True,
            on_select=partial(_lassoed, scope),
            selection=("lasso", "box"),
        )
    with right:
        _pattern(view, atlas, chosen)
        _inside(view, chosen, _lasso(view, scope))


@fragment
def _pattern(view: View, atlas: OpenedAtlas, chosen: ChosenPoints) -> None:
    """The pattern that is pointed at or kept; only it and its neighbours are read and sent."""
    points = chosen.points
    known = points["sample"]
    kept = _number(view.value("pattern"))
    kept = kept if (known == kept).any() else -1
    asked = _number((st.session_state.get(_PATTERN) or {}).get("asked", -1))
    asked = asked if (known == asked).any() else kept
    asked = asked if asked >= 0 else int(known[chosen.lit].iloc[0])
    sheet: dict[str, Any] = {"asked": asked, "kept": kept, "why": "", "samples": []}
    try:
        sheet |= sheet_around(atlas, str(points["tower"].iloc[0]), asked)
    except RunError as error:
        sheet["why"] = str(error)
    found = pattern_view(_PATTERN, _MAP, sheet, _kept)
    _open(view, str(found.opened or ""), points)


def _inside(view: View, chosen: ChosenPoints, lasso: Lasso) -> None:
    """Heads of the points that are lassoed or lit."""
    st.markdown("### Heads inside")
    if not lasso and chosen.lit.all():
        _small("atlas-hint", "Draw a lasso, or choose a cluster, to list the heads of its points.")
        return
    points, inside = chosen.points, chosen.lit
    if lasso:
        inside = inside & lasso.holds(points["x"].to_numpy(), points["y"].to_numpy())
    heads = heads_inside(points, inside)
    first = f" The first {_HEADS_LISTED} are listed." if len(heads) > _HEADS_LISTED else ""
    _small(
        "atlas-inside",
        f"{int(inside.sum()):,} patterns of {len(heads):,} heads; a bar is the share of a head's "
        f"patterns that lies inside.{first}",
    )
    listed = heads.head(_HEADS_LISTED)
    rows = [
        (name, float(line.share), f"{line.inside} of {line.of}")
        for name, line in zip(head_names(listed), listed.itertuples(), strict=True)
    ]
    opened = head_list(_HEADS, "Heads with patterns inside", rows)
    if lasso and st.button("Clear the lasso"):
        view.note("lasso", "")
        st.session_state[_CLEARED] = st.session_state.get(_CLEARED, 0) + 1
        st.rerun()
    _open(view, opened, points)


def _kinds(view: View, atlas: OpenedAtlas, tower: str) -> None:
    """Prototypes with their names, and what each head's patterns are."""
    clusters = atlas.of(atlas.clusters, tower)
    prototypes_of, mix_of = _kind_figures(str(atlas.folder), atlas.stamp, tower, atlas)
    draw(
        prototypes_of,
        "atlas-prototypes",
        escaped(
            "The pattern of each cluster that is nearest to its others, the share of all patterns "
            "that lie in the cluster, and of what share of them the rule that names it holds. Each "
            "picture has its own scale. "
        )
        + "; ".join(
            escaped(f"{int(line.cluster)}: {line.sentence}".rstrip("."))
            for line in clusters.itertuples()
        )
        + ".",
        clusters,
    )
    draw(
        mix_of,
        _MIX,
        escaped(
            "A head is steady where 80 % or more of its patterns lie in one cluster, else what it "
            "does depends on the content. A click opens the head."
        ),
        atlas.of(atlas.head_mix, tower),
        on_select=lambda: None,
    )
    for head in clicked(_MIX)[:1]:
        _open(view, str(head), atlas.of(atlas.head_mix, tower))


@st.cache_resource(max_entries=8, show_spinner=False)
def _kind_figures(folder: str, stamp: float, tower: str, _atlas: OpenedAtlas) -> tuple[Any, Any]:
    mine = (_atlas.clusters["tower"] == tower).to_numpy()
    made = prototypes(_atlas.clusters[mine], _atlas.medoids[mine], columns=5)
    return made, head_mix(_atlas.head_mix, _atlas.head_shares, tower)


def _told(atlas: OpenedAtlas, told: dict[str, Any], tower: str) -> None:
    """How far the clusters can be trusted, and what is not on the map."""
    lines = []
    if told.get("beside"):
        others = ", ".join(f"{name} {plain(value)}" for name, value in told["beside"].items())
        lines.append(
            f"Other methods find the same clusters to (adjusted Rand index, 1: the same): {others}."
        )
    lines += [str(note) for note in told.get("notes", [])]
    missing = atlas.of(atlas.not_drawn, tower)["reason"].value_counts()
    lines += [f"{count:,} patterns are not drawn: {why}" for why, count in missing.items()]
    lines += [f"No map of {name}: {why}" for name, why in atlas.about["refused"].items()]
    for number, line in enumerate(lines):
        _small(f"atlas-told-{number}", line)


def _small(key: str, sentence: str) -> None:
    with st.container(key=f"caption-{key}"):
        st.markdown(escaped(sentence))


def _nothing(view: View, begun: bool) -> None:
    name = view.item.name if view.item else ""
    why = "is unfinished" if begun else "is not there"
    tell(f"The pattern atlas of run {name!r} {why}. It is made by:", _command(view))


def _command(view: View) -> str:
    item = view.item
    if item is None or not item.model:
        return "headscope atlas MODEL --out runs/atlas"
    data = f" --data {item.data}" if item.data else ""
    return f"headscope atlas {item.model}{data} --out runs/{item.model.split('/')[-1]}-atlas"


def _lasso(view: View, scope: str) -> Lasso:
    """The one in the address; one that was drawn on another map is none."""
    drawn_on, _, text = view.value("lasso").rpartition(":")
    return Lasso.read(text) if drawn_on == scope else Lasso()


def _lassoed(scope: str) -> None:
    state = st.session_state.get(_MAP)
    lasso = Lasso.of_selection(state["selection"]) if state else Lasso()
    if lasso:
        st.query_params["lasso"] = f"{scope}:{lasso}"
    elif "lasso" in st.query_params:
        del st.query_params["lasso"]


def _kept() -> None:
    kept = _number((st.session_state.get(_PATTERN) or {}).get("kept", -1))
    if kept >= 0:
        st.query_params["pattern"] = str(kept)


def _open(view: View, head: str, known: pd.DataFrame) -> None:
    if head and "head" in view.pages and head in set(head_names(known)):
        view.open("head", head=head)


def _number(text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return -1


PAGE = Page("atlas", "Atlas", "What kinds of attention the heads make, as a map.", show)
