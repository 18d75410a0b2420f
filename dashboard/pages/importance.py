"""Importance: what the model loses without each head, and whether estimates can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.head_table import HeadTable
from dashboard.clickable_map import clickable
from dashboard.drawn import draw
from dashboard.effects_apart import draw_by_class, draw_by_example
from dashboard.empty import tell
from dashboard.estimate_figures import ALL, named
from dashboard.figures import (
    agreement_of_estimates,
    estimate_against_exact,
    heatmap,
    joint_sets,
    pruning_curve,
    ranked_effects,
    whole_layers,
)  # fmt: skip
from dashboard.guarded import fragment
from dashboard.head_click import draw_heads
from dashboard.narrowed import only_measures
from dashboard.opened_runs import section_table
from dashboard.page import Page
from dashboard.set_figures import ACCURACY, EFFECT
from dashboard.view import View
from probes.depth import WRITING_TOWERS

if TYPE_CHECKING:
    import pandas as pd

SECTION = "importance"
_ALONE, _KEPT, _OFF = "importance_", "keep_one_", "layer_off_"
_MAP_PIXELS, _PANEL_PIXELS = 900, 370
_HIGH = {
    _ALONE: "What the model loses with this head alone taken away; positive: it is better with the "
    "head. The null is the same on a shuffled target, or the mean of the layer's other heads.",
    _KEPT: "What is lost with all other heads of the layer gone; low: the head does the layer's "
    "job alone.",
}


def show(view: View) -> None:
    """Effects, estimates, sets of heads, classes and examples."""
    assert view.item is not None
    every = view.run.heads.measures
    effects = [name for name in every if name.startswith((_ALONE, _KEPT))]
    if not effects:
        model = view.item.model or "MODEL"
        tell(
            "What happens without each head was not measured in this run. To do so, with a "
            "gradient's estimate beside it:",
            f"headscope score {model} --measures importance,atp --out runs/importance",
        )
        return
    agreement = section_table(view.item, SECTION, "agreement")
    estimates = [] if agreement is None else list(dict.fromkeys(agreement["estimate"]))
    off = [name for name in every if name.startswith(_OFF)]
    heads = only_measures(view, dict.fromkeys([*effects, *off, *estimates]))
    towers = heads.select(effects).towers
    writing = next((name for name in towers if name in WRITING_TOWERS), towers[0])
    tower = view.choose("tower", "tower", towers, writing)
    known = [name for name in effects if tower in heads.select(name).towers]
    measure = view.choose("measure", "effect", known, text=named)
    variant = view.choose("variant", "instead of the head", heads.variants(measure, tower))
    _effects(view, heads, tower, measure, variant)
    if agreement is not None and (agreement["exact"] == measure).any():
        st.subheader("Estimates against the exact effect", anchor=False)
        _estimates(view, heads, agreement[agreement["exact"] == measure], variant, tower)
    elif measure.startswith(_ALONE):
        tell("No estimate was taken beside the exact effect. `atp` and `gradient` are cheap ones.")
    _sets(view, heads, effects)
    _apart(view, heads, tower, measure, variant)


def _effects(view: View, heads: HeadTable, tower: str, measure: str, variant: str) -> None:
    high = next(text for start, text in _HIGH.items() if measure.startswith(start))
    figure = clickable(heatmap(heads, measure, tower, variant), tower, {view.value("head")})
    lines = heads.lines(measure, tower, variant)
    beside = st.container(horizontal=True, gap="medium", key="importance-effects")
    with beside.container(width=min(int(figure.layout.width), _MAP_PIXELS)):
        draw_heads(view, figure, "importance-map", f"{high} A click opens a head.", lines,
                   wide=False)  # fmt: skip
    with beside.container(width=_PANEL_PIXELS):
        draw_heads(
            view,
            ranked_effects(heads, measure, tower, variant),
            "importance-ranked",
            "Bootstrap intervals over examples. A head whose interval lies right of its null and "
            "of 0 matters for the right answer.",
            lines,
        )
    whole = _OFF + measure.removeprefix(_ALONE)
    if measure.startswith(_ALONE) and whole in heads.measures:
        with beside.container(width=_PANEL_PIXELS):
            draw(
                whole_layers(heads, whole, measure, tower, variant),
                "importance-layers",
                "A layer that costs more than the sum of its heads has heads that stand in for one "
                "another.",
                heads.lines(whole, tower, variant),
                wide=True,
            )


@fragment
def _estimates(
    view: View, heads: HeadTable, agreement: pd.DataFrame, variant: str, tower: str
) -> None:
    own = replace(view, controls=st.container(horizontal=True, key="controls-estimates"))
    place = own.choose("heads-of", "heads of", list(dict.fromkeys(agreement["tower"])), tower)
    mine = agreement[agreement["tower"] == place]
    best = mine.sort_values("spearman", ascending=False)
    pairs = [(str(line.estimate), str(line.variant)) for line in best.itertuples()]
    estimate = own.choose("estimate", "estimate", pairs, text=lambda pair: named(*pair))
    line = mine[(mine["estimate"] == estimate[0]) & (mine["variant"] == estimate[1])]
    exact = str(mine["exact"].iloc[0]), variant
    left, right = st.columns(2, gap="medium")
    with left:
        draw_heads(
            view,
            estimate_against_exact(
                heads, exact, estimate, ALL if place == ALL else place, view.value("head")
            ),
            "importance-scatter",
            f"{_agrees(line)} A click opens a head; bars are intervals over examples.",
            line,
        )
    with right:
        draw(
            agreement_of_estimates(mine, estimate),
            "importance-agreement",
            "Spearman over heads, with bootstrap intervals over heads. Open: of sizes without "
            "sign, for estimates that know none. Dashed: the exact effect of half of the examples "
            "against the other half; no estimate can be expected to do better.",
            mine,
            wide=True,
        )


def _agrees(lines: pd.DataFrame) -> str:
    line = next(lines.itertuples())
    return (
        f"Spearman {line.spearman:.2f} ({line.ci_low:.2f} to {line.ci_high:.2f}) over {line.heads} "
        f"heads; {line.overlap:.0%} of the {line.top} highest are the same, chance gives "
        f"{line.overlap_chance:.0%} and seldom more than {line.overlap_chance_high:.0%}."
    )


def _sets(view: View, heads: HeadTable, effects: list[str]) -> None:
    assert view.item is not None
    tables = {name: section_table(view.item, SECTION, name) for name in ("pruning", "joint")}
    found = {name: table for name, table in tables.items() if table is not None and len(table)}
    if not found:
        return
    st.subheader("Heads taken away together", anchor=False)
    # The tables are of the first effect that is told from the output.
    first = next((n for n in effects if n.startswith(_ALONE) and "_layer_" not in n), effects[0])
    effect = f"{named(first).removeprefix('importance ')} ({heads.unit(first)})"
    _drawn_sets(view, found, effect)


@fragment
def _drawn_sets(view: View, found: dict[str, pd.DataFrame], effect: str) -> None:
    own = replace(view, controls=st.container(horizontal=True, key="controls-sets"))
    columns = [EFFECT]
    if all(table["accuracy"].notna().all() for table in found.values()):
        columns.append(ACCURACY)
    words = {EFFECT: effect, ACCURACY: "accuracy"}
    column = own.choose("told-by", "told by", columns, text=words.__getitem__)
    shown: list[tuple[str, Callable[..., Any], str]] = [
        (
            "pruning",
            pruning_curve,
            "A ranking that means something keeps the model well for longer than random orders. "
            "Heads were ranked on one half of the examples and judged on the other.",
        ),
        (
            "joint",
            joint_sets,
            "Diamond: heads chosen on one half of the examples, taken away on the other. Grey: "
            "random sets with as many heads in each layer. p: how often a random set costs as "
            "much.",
        ),
    ]
    there = [each for each in shown if each[0] in found]
    for place, (name, figure, caption) in zip(st.columns(2, gap="medium"), there, strict=False):
        with place:
            drawn = figure(found[name], effect, column)
            draw(drawn, f"importance-{name}", caption, found[name], wide=True)


def _apart(view: View, heads: HeadTable, tower: str, measure: str, variant: str) -> None:
    unit = heads.unit(measure, variant)
    lines = heads.lines(measure, tower, variant).sort_values("value", ascending=False)
    names = [f"{tower}.L{line.layer}H{line.head}" for line in lines.itertuples()]
    st.subheader("Behind the mean", anchor=False)
    places = list(st.columns(2, gap="medium"))
    with places[0]:
        draw_by_example(view, names, measure, variant, unit)
    with places[1]:
        draw_by_class(view, measure, tower, unit)


PAGE = Page("importance", "Importance", "What the model loses without each head.", show)
