"""From a result to a Plotly figure: pure functions, the same for notebooks and pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.head_table import HeadTable
from analysis.precision import plain
from dashboard.atlas_figures import head_mix, prototypes
from dashboard.compare_figures import comparison_maps, rank_agreement
from dashboard.effect_figures import (
    effect_by_example,
    effects_by_class,
    ranked_effects,
    whole_layers,
)
from dashboard.estimate_figures import agreement_of_estimates, estimate_against_exact
from dashboard.evaluation_figures import edit_effects
from dashboard.feature_heads import feature_heads
from dashboard.feature_words import feature_words
from dashboard.figure_look import figure_look
from dashboard.firing_on_picture import feature_on_picture
from dashboard.firing_on_text import feature_on_text
from dashboard.head_map import (
    Grid,
    Scale,
    head_axis,
    layer_axis,
    legend,
    panel,
)
from dashboard.head_strips import head_strips
from dashboard.massive_figures import massive_by_layer, massive_dimensions, sink_dimensions
from dashboard.patches_of_word import patches_of_word
from dashboard.pattern_map import pattern_map
from dashboard.pattern_matrix import pattern_matrix
from dashboard.profile_figures import layer_trend, profile, profile_by_layer
from dashboard.set_figures import joint_sets, pruning_curve
from dashboard.sink_figures import sinks_by_layer
from dashboard.sink_heads import rate_by_threshold, var_choice
from dashboard.sinks_shown import sinks_on_picture, sinks_on_text
from dashboard.t_vhd_figures import t_vhd_by_group, t_vhd_compared
from dashboard.vision_figures import dominance_by_layer, modality_flow_by_layer, word_map

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "agreement_of_estimates", "comparison_maps", "dominance_by_layer", "edit_effects",
    "effect_by_example", "effects_by_class", "estimate_against_exact", "feature_heads",
    "feature_on_picture", "feature_on_text", "feature_words", "head_mix", "head_strips", "heatmap",
    "joint_sets", "layer_trend", "massive_by_layer", "massive_dimensions", "modality_flow_by_layer",
    "patches_of_word", "pattern_map", "pattern_matrix", "profile", "profile_by_layer", "prototypes",
    "pruning_curve", "rank_agreement", "ranked_effects", "rate_by_threshold", "sink_dimensions",
    "sinks_by_layer", "sinks_on_picture", "sinks_on_text", "small_multiples", "t_vhd_by_group",
    "t_vhd_compared", "var_choice", "whole_layers", "word_map",
]  # fmt: skip


def heatmap(
    heads: HeadTable,
    measure: str,
    tower: str | None = None,
    variant: str | None = None,
    inputs: str | None = None,
) -> go.Figure:
    """A layer x head map of one measure: x is the head, y the layer, layer 0 on top.

    Colours: viridis from 0 to 1 for shares and probabilities, cividis from 0 for counts, norms
    and nats, red through white to blue around 0 for signed values. Hatched grey cells were not
    measured, or are layers without softmax attention. Hovering shows the head's name, value,
    interval, null and number of examples.

    Raises:
        ValueError: the measure is not in the table, or several towers, variants or inputs are.
    """
    import plotly.graph_objects as go

    lines = heads.lines(measure, tower, variant, inputs)
    tower, variant, inputs = (str(lines[name].iloc[0]) for name in ("tower", "variant", "inputs"))
    grid = heads.grid(measure, tower, variant, inputs)
    unit = heads.unit(measure, variant)
    figure = go.Figure()
    for trace in panel(heads, measure, tower, variant, inputs, Scale.of(unit, grid)):
        figure.add_trace(trace)
    figure.data[0].colorbar = legend(unit)
    figure.update_xaxes(head_axis(grid.shape[1]))
    figure.update_yaxes(layer_axis(grid.shape[0]))
    cell = _cell_pixels(grid.shape)
    title = f"{_named(measure, variant)} · {escape(tower)}"
    subtitle = _subtitle(lines["n"].to_numpy(), inputs, grid)
    look = figure_look()
    width = max(grid.shape[1] * cell + 210, 380)
    # Room for the title, at the right of map and legend; they stay where they are.
    missing = max(9 * len(title), 7 * len(subtitle)) + look["margin"]["l"] + 8 - width
    if missing > 0:
        look["margin"] |= {"r": look["margin"]["r"] + missing}
    figure.update_layout(
        look,
        title={"text": title, "subtitle": {"text": subtitle}},
        width=width + max(missing, 0),
        height=max(grid.shape[0] * cell + 170, 260),
    )
    return figure


def small_multiples(
    heads: HeadTable,
    measures: Sequence[str],
    tower: str | None = None,
    columns: int = 3,
    title: str | None = None,
) -> go.Figure:
    """Several measures of one tower side by side, each with a scale of its own beside it.

    A measure with several variants shows the first; the panel's title names it. The title says
    tower, inputs and number of examples unless one is given.
    """
    from plotly.subplots import make_subplots

    if not measures:
        raise ValueError("`measures` must name at least one measure, got none. Name some.")
    chosen = []
    for measure in measures:
        variant = heads.variants(measure, tower)[0]
        line = heads.lines(measure, tower, variant)
        chosen.append((measure, variant, str(line["tower"].iloc[0]), str(line["inputs"].iloc[0])))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[
            f"{_named(measure, variant)} · {heads.unit(measure, variant)}"
            for measure, variant, _, _ in chosen
        ],
        horizontal_spacing=0.3 / columns,
        vertical_spacing=0.28 / rows,
    )
    shape, counts = (1, 1), []
    for index, (measure, variant, place, inputs) in enumerate(chosen):
        row, column = divmod(index, columns)
        grid = heads.grid(measure, place, variant, inputs)
        shape = (max(shape[0], grid.shape[0]), max(shape[1], grid.shape[1]))
        unit = heads.unit(measure, variant)
        scale = Scale.of(unit, grid)
        counts.append(heads.lines(measure, place, variant, inputs)["n"].to_numpy())
        traces = panel(heads, measure, place, variant, inputs, scale, brief=True)
        for trace in traces:
            figure.add_trace(trace, row + 1, column + 1)
        area = figure.get_subplot(row + 1, column + 1)
        right, bottom, top = area.xaxis.domain[1], *area.yaxis.domain
        panel_legend = legend(unit) | {
            "x": right + 0.005,
            "y": (bottom + top) / 2,
            "len": top - bottom,
            "thickness": 8,
            "title": None,
        }
        figure.data[-len(traces)].colorbar = panel_legend
        x_axis, y_axis = head_axis(grid.shape[1]), layer_axis(grid.shape[0])
        y_axis["scaleanchor"] = None
        if column > 0:
            y_axis["title"] = None
        if index + columns < len(chosen):
            x_axis["title"] = None
        figure.update_xaxes(x_axis, row=row + 1, col=column + 1)
        figure.update_yaxes(y_axis, row=row + 1, col=column + 1)
    cell = max(_cell_pixels(shape) // 2, 9)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        figure_look(),
        title_text=title
        or f"{escape(chosen[0][2])} · {_counted(np.concatenate(counts), chosen[0][3])}",
        width=max(columns * (shape[1] * cell + 130), 380),
        height=max(rows * (shape[0] * cell + 110), 220) + 44,
    )
    return figure


def _named(measure: str, variant: str) -> str:
    words = escape(measure.replace("_", " "))
    return f"{words} ({escape(variant)})" if variant else words


def _subtitle(n: NDArray[Any], inputs: str, grid: Grid) -> str:
    parts = [_counted(n, inputs)]
    known = grid[np.isfinite(grid)]
    if known.size:
        parts.append(f"range {plain(float(known.min()))} to {plain(float(known.max()))}")
    if np.isnan(grid).any():
        parts.append("hatched: not measured")
    return " · ".join(parts)


def _counted(n: NDArray[Any], inputs: str) -> str:
    low, high = int(n.min()), int(n.max())
    counts = f"n = {high}" if low == high else f"n = {low} to {high}"
    return counts + (f" · {escape(inputs)}" if inputs else "")


def _cell_pixels(shape: tuple[int, ...]) -> int:
    return int(np.clip(720 // max(shape), 14, 44))
