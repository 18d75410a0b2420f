"""The parts of a layer x head map: colour scale, cells, hatching, hover texts, axes, legend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.head_table import RANGES, HeadTable
from analysis.precision import plain, rounded
from dashboard.figure_look import ACCENT, HATCH

SIGNED_UNITS = ("correlation", "cosine", "difference")
HELPS_OR_HURTS = (
    (0.0, "#b2182b"),
    (0.25, "#ef8a62"),
    (0.5, "#f7f6f4"),
    (0.75, "#67a9cf"),
    (1.0, "#2166ac"),
)
"""Red for negative, blue for positive, near-white for none."""

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Colours and range of a heat map: the same for a measure wherever it is drawn."""

    colours: Any
    low: float
    high: float

    @classmethod
    def of(cls, unit: str, values: Grid) -> Scale:
        """Shares and probabilities 0 to 1; signed values around 0; everything else from 0.

        ``values`` decide the upper end where the unit has none: pass those of all panels that
        are compared.
        """
        known = values[np.isfinite(values)]
        largest = float(np.abs(known).max()) if known.size else 0.0
        largest = largest if largest > 0 else 1.0
        if unit in SIGNED_UNITS or (known < 0).any():
            low, high = RANGES.get(unit, (-largest, largest))
            return cls(HELPS_OR_HURTS, low, high)
        if unit in RANGES:
            return cls("Viridis", *RANGES[unit])
        return cls("Cividis", 0.0, largest)


def panel(
    heads: HeadTable,
    measure: str,
    tower: str,
    variant: str,
    inputs: str,
    scale: Scale,
    brief: bool = False,
) -> list[Any]:
    """The traces of one map, the coloured cells first.

    Args:
        brief: hovering says the numbers as the browser rounds them, not to the precision of the
            interval; a sixth of the size, for many panels.
    """
    import plotly.graph_objects as go

    grid = heads.grid(measure, tower, variant, inputs)
    cells = go.Heatmap(
        z=grid,
        x=list(range(grid.shape[1])),
        y=list(range(grid.shape[0])),
        colorscale=scale.colours,
        zmin=scale.low,
        zmax=scale.high,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        **(
            _brief_hover(heads, measure, tower, variant, inputs)
            if brief
            else {
                "customdata": hover_texts(heads, measure, tower, variant, inputs),
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        ),
    )
    return [cells, *hatching(np.isnan(grid), tower)]


def click_targets(
    shape: tuple[int, ...],
    tower: str,
    marked: str | Collection[str] = (),
    texts: Sequence[Sequence[str]] | None = None,
    size: int = 18,
) -> Any:
    """A trace of squares over the cells of a map, so that they can be clicked.

    A heat map reports no clicks. `customdata` of each square is its head's name.

    Args:
        marked: a head, or heads, that get a frame.
        texts: what hovering says, ``[layer][head]``: the squares lie above the map and keep its
            own hover from showing.
        size: of a square in pixels, that of a cell.
    """
    import plotly.graph_objects as go

    layers, heads = shape
    thick = 3 if size >= 14 else 2
    framed = {marked} if isinstance(marked, str) else set(marked)
    names = [f"{tower}.L{layer}H{head}" for layer in range(layers) for head in range(heads)]
    said = [text for row in texts or [] for text in row]
    hover: dict[str, Any] = {"hoverinfo": "none"}
    if said:
        hover = {"text": said, "hovertemplate": "%{text}<extra></extra>"}
    return go.Scatter(
        x=[head for _ in range(layers) for head in range(heads)],
        y=[layer for layer in range(layers) for _ in range(heads)],
        customdata=names,
        mode="markers",
        marker={
            "symbol": "square",
            "size": size,
            "color": "rgba(0,0,0,0)",
            "line": {"color": ACCENT, "width": [thick * (name in framed) for name in names]},
        },
        # Plotly fades what was not clicked; frames are to stay.
        unselected={"marker": {"opacity": 1}},
        showlegend=False,
        **hover,
    )


def hatching(missing: NDArray[np.bool_], tower: str) -> list[Any]:
    """Diagonal strokes over cells without a value, and their hover; nothing if there are none."""
    import plotly.graph_objects as go

    if not missing.any():
        return []
    x: list[float | None] = []
    y: list[float | None] = []
    for layer, head in np.argwhere(missing).tolist():
        for shift in (-0.5, 0.0, 0.5):
            left, right = max(-0.5, -0.5 + shift), min(0.5, 0.5 + shift)
            x += [head + left, head + right, None]
            y += [layer - left + shift, layer - right + shift, None]
    strokes = go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": HATCH, "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    places = np.argwhere(missing)
    targets = go.Scatter(
        x=places[:, 1],
        y=places[:, 0],
        mode="markers",
        marker={"size": 14, "symbol": "square", "opacity": 0},
        text=[
            f"{escape(tower)}.L{layer}H{head}<br>not measured" for layer, head in places.tolist()
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    return [strokes, targets]


def hover_texts(
    heads: HeadTable, measure: str, tower: str, variant: str, inputs: str
) -> list[list[str]]:
    """What hovering over each cell says, ``[layer][head]``: value, interval, null and n."""
    unit, place = escape(heads.unit(measure, variant)), escape(tower)
    shape = heads.grid(measure, tower, variant, inputs).shape
    found = [[f"<b>{place}.L{y}H{x}</b><br>not measured" for x in range(shape[1])]
             for y in range(shape[0])]  # fmt: skip
    lines = heads.lines(measure, tower, variant, inputs)
    names = ["layer", "head", "value", "ci_low", "ci_high", "null_low", "null_high", "n"]
    for layer, head, value, low, high, null_low, null_high, n in zip(
        *(lines[name].tolist() for name in names), strict=True
    ):
        if not np.isfinite(value):
            continue
        parts = [f"<b>{place}.L{layer}H{head}</b>", f"{rounded(value, low, high)} {unit}"]
        if np.isfinite(low):
            parts.append(f"95 % interval {plain(low)} to {plain(high)}")
        if np.isfinite(null_low):
            parts.append(f"null {plain(null_low)} to {plain(null_high)}")
        if np.isfinite(n):
            parts.append(f"n {int(n)}")
        found[layer][head] = "<br>".join(parts)
    return found


def _brief_hover(
    heads: HeadTable, measure: str, tower: str, variant: str, inputs: str
) -> dict[str, Any]:
    parts = [f"<b>{escape(tower)}.L%{{y}}H%{{x}}</b>"]
    parts.append(f"%{{z:.3~g}} {escape(heads.unit(measure, variant))}")
    columns = []
    for words, names in (("95 % interval", ("ci_low", "ci_high")),
                         ("null", ("null_low", "null_high"))):  # fmt: skip
        ends = [heads.grid(measure, tower, variant, inputs, name) for name in names]
        if np.isfinite(ends[0]).any():
            low = len(columns)
            columns += ends
            parts.append(f"{words} %{{customdata[{low}]:.3~g}} to %{{customdata[{low + 1}]:.3~g}}")
    hover = {"hovertemplate": "<br>".join(parts) + "<extra></extra>"}
    return hover | ({"customdata": np.stack(columns, -1).astype(np.float32)} if columns else {})


def legend(unit: str) -> dict[str, Any]:
    """The colour bar, titled with the unit."""
    return {
        "title": {"text": unit, "side": "top", "font": {"size": 12}},
        "thickness": 12,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        "nticks": 6,
    }


def head_axis(heads: int) -> dict[str, Any]:
    """The x axis: one tick per head, fewer if there are many."""
    return _axis("head", heads) | {"range": [-0.5, heads - 0.5], "constrain": "domain"}


def layer_axis(layers: int) -> dict[str, Any]:
    """The y axis, layer 0 on top, cells square."""
    return _axis("layer", layers) | {
        "range": [layers - 0.5, -0.5],
        "scaleanchor": "x",
        "constrain": "domain",
    }


def _axis(name: str, count: int) -> dict[str, Any]:
    step = max(1, -(-count // 16))
    return {
        "title": {"text": name, "font": {"size": 12}, "standoff": 6},
        "tickmode": "array",
        "tickvals": list(range(0, count, step)),
        "tickfont": {"size": 11},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
