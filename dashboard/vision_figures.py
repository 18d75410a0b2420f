"""What an answer takes from its image: VHD of every head at a word, flow and MDI over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.precision import plain
from dashboard.figure_look import CATEGORIES, FAINT, INK, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.head_map import Scale, hatching, head_axis, layer_axis, legend
from dashboard.plain_axes import BELOW, curve, plain_axis, told, whole_numbers

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analysis.head_table import HeadTable
    from analysis.vision.depth import OverDepth

_UNIT = "norm of z"
_PARTS = (
    ("output->image", "image", CATEGORIES[0]),
    ("output->before", "text before the image", CATEGORIES[1]),
    ("output->between", "text between images", CATEGORIES[4]),
    ("output->after", "text behind the image", CATEGORIES[3]),
    ("output->output", "the answer so far", CATEGORIES[2]),
)
_BLOCKS = (
    ("T->V", "text reads image", CATEGORIES[0]),
    ("T->T", "text reads text", CATEGORIES[1]),
    ("V->V", "image reads image", CATEGORIES[2]),
    ("V->T", "image reads text", CATEGORIES[3]),
)


def word_map(
    vhd: NDArray[Any], word: str, t_vhd: float, largest: float, tower: str = "language"
) -> go.Figure:
    """VHD of every head at one word: x is the head, y the layer, layer 0 on top.

    Args:
        vhd: ``[layer head]``; NaN is hatched.
        largest: the upper end of the scale, the same for all words that are compared.
    """
    import plotly.graph_objects as go

    grid = np.asarray(vhd, float)
    hover = [
        [
            f"<b>{shown(tower)}.L{layer}H{head}</b><br>VHD {plain(value)}"
            for head, value in enumerate(line)
        ]
        for layer, line in enumerate(grid.tolist())
    ]
    scale = Scale.of(_UNIT, np.array([largest]))
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=list(range(grid.shape[1])),
            y=list(range(grid.shape[0])),
            colorscale=scale.colours,
            zmin=scale.low,
            zmax=scale.high,
            xgap=1,
            ygap=1,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorbar=legend(_UNIT),
        )
    )
    for trace in hatching(np.isnan(grid), tower):
        figure.add_trace(trace)
    known = grid[np.isfinite(grid)]
    said = f" · heads {plain(float(known.min()))} to {plain(float(known.max()))}"
    cell = int(np.clip(440 // max(grid.shape), 10, 44))
    figure.update_layout(
        figure_look(),
        title={
            "text": f"VHD at »{shown(word)}« · {shown(tower)}",
            "subtitle": {"text": f"T-VHD {plain(t_vhd)}{said if known.size else ''}"},
        },
        width=max(grid.shape[1] * cell + 170, 380),
        height=max(grid.shape[0] * cell + 160, 260),
    )
    figure.update_xaxes(head_axis(grid.shape[1]))
    figure.update_yaxes(layer_axis(grid.shape[0]))
    return figure


def modality_flow_by_layer(depth: OverDepth, n: int) -> go.Figure:
    """What the answer reads, layer by layer: its weight on the image, the prompt, and itself.

    Without answers in the data: the four blocks between text and image. Mean over heads.
    """
    import plotly.graph_objects as go

    layers = depth.layers
    answered = "output->image" in layers
    figure = go.Figure()
    for column, name, ink in _PARTS if answered else _BLOCKS:
        if column not in layers or not layers[column].notna().any():
            continue
        hover = [
            f"<b>{name}, layer {layer}</b><br>{plain(value)} of the weight"
            for layer, value in zip(layers["layer"], layers[column], strict=True)
        ]
        figure.add_trace(curve(layers["layer"], layers[column], name, ink, "solid", hover))
    what = "What the answer reads" if answered else "Who reads what"
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"{what}, layer by layer · {shown(depth.tower)}",
            "subtitle": {"text": f"n = {n} · mean over heads"},
        },
        height=400,
        margin={"b": 96},
        legend=BELOW,
    )
    figure.update_xaxes(_layers(int(layers["layer"].max())))
    figure.update_yaxes(plain_axis("share of a query's weight", range=[0, 1.03]))
    return figure


def dominance_by_layer(heads: HeadTable, depth: OverDepth, variant: str = "T=all") -> go.Figure:
    """MDI of every head over its layer, and of the mean over heads as a line; 1 is balanced.

    The axis counts in powers, as 2 and 1/2 are as far from balance. Heads that give the text or the
    image nothing at all cannot be drawn; the subtitle counts them.

    Raises:
        ValueError: the table holds no `modality_dominance` of this tower and variant.
    """
    import plotly.graph_objects as go

    lines = heads.lines("modality_dominance", depth.tower, variant)
    drawn = lines[np.isfinite(lines["value"]) & (lines["value"] > 0)]
    last, left = int(lines["layer"].max()), len(lines) - len(drawn)
    unit = heads.unit("modality_dominance", variant)
    spread = (drawn["head"] - drawn["head"].max() / 2) / max(int(drawn["head"].max() or 1), 1)
    figure = go.Figure(
        [
            go.Scatter(
                x=drawn["layer"] + 0.4 * spread,
                y=drawn["value"],
                mode="markers",
                name="head",
                marker={"size": 6, "color": CATEGORIES[0], "opacity": 0.7},
                text=[
                    told(f"{line.tower}.L{line.layer}H{line.head}", line, unit)
                    for line in drawn.itertuples()
                ],
                hovertemplate="%{text}<extra></extra>",
            ),
            go.Scatter(
                x=depth.layers["layer"],
                y=depth.layers["dominance"].where(depth.layers["dominance"] > 0),
                mode="lines",
                name="of the mean over heads",
                line={"color": INK, "width": 2},
                hovertemplate="layer %{x}: %{y:.3g}<extra></extra>",
            ),
        ]
    )
    figure.add_hline(1, line={"color": FAINT, "dash": "dot", "width": 1.5})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Modality dominance (MDI) · {shown(depth.tower)}",
            "subtitle": {
                "text": f"n = {int(lines['n'].max())} · dotted: balanced"
                + (f" · {left} heads cannot be drawn" if left else "")
            },
        },
        height=400,
        margin={"b": 96},
        legend=BELOW,
    )
    figure.update_xaxes(_layers(last))
    figure.update_yaxes(plain_axis("text over image, per key", type="log", dtick="D2"))
    return figure


def _layers(last: int) -> dict[str, Any]:
    return plain_axis("layer", **whole_numbers(last + 1)) | {"range": [-0.4, last + 0.4]}
