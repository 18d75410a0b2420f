"""One head's scores among those of its whole tower: a strip per measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.head_table import HeadTable
from analysis.precision import plain, rounded
from dashboard.figure_look import ACCENT, FAINT, INK, PAPER, figure_look
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Named = tuple[str, str]
"""A measure and its variant."""
_ROW_PIXELS = 30
_MANY = 1500
"""Points from which they are drawn by WebGL."""


def lines_by_measure(heads: HeadTable, tower: str) -> dict[Named, pd.DataFrame]:
    """The lines of one tower for each measure and variant, of its first inputs."""
    frame = heads.select(tower=tower).frame
    found = {}
    for name, lines in frame.groupby(["measure", "variant"], sort=False):
        first = lines["inputs"].iloc[0]
        found[str(name[0]), str(name[1])] = lines[lines["inputs"] == first]
    return found


def head_strips(
    lines: Mapping[Named, pd.DataFrame], head: Head, names: Sequence[Named], title: str
) -> go.Figure:
    """A strip per measure: all heads of the tower in grey, this one marked, its interval and null.

    Each strip runs over its own range, which stands at its right with the head's value. The null
    is a band from the head's 2.5 % to its 97.5 % null. `customdata` of each point is its head's
    name.

    Args:
        lines: of the head's tower, from `lines_by_measure`.

    Raises:
        ValueError: no measure is named, or one that is not in the lines.
    """
    import plotly.graph_objects as go

    if not names:
        raise ValueError("`names` must name at least one measure, got none. Name some.")
    absent = [name for name in names if name not in lines]
    if absent:
        raise ValueError(f"Measure {absent[0]} must be in the lines of {head.tower}. Leave it out.")
    strips = [_Strip(lines[name], head, row) for row, name in enumerate(names)]
    figure = go.Figure(_others(strips, head))
    for strip in strips:
        for trace in strip.marks(head):
            figure.add_trace(trace)
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": title,
            "subtitle": {"text": "grey: the other heads of the tower"},
            "x": 0.0,
            "xref": "container",
        },
        height=96 + _ROW_PIXELS * len(strips),
        margin={"l": 148, "r": 128, "t": 64, "b": 16},
        showlegend=False,
        hovermode="closest",
    )
    figure.update_xaxes(visible=False, range=[-0.02, 1.02], fixedrange=True)
    figure.update_yaxes(
        tickvals=list(range(len(strips))),
        ticktext=[_label(name) for name in names],
        tickfont={"size": 11},
        range=[len(strips) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    for strip in strips:
        figure.add_annotation(
            text=strip.words(),
            x=1.01,
            xref="paper",
            xanchor="left",
            y=strip.row,
            showarrow=False,
            align="left",
            font={"size": 11, "color": INK},
        )
    return figure


class _Strip:
    """Where the points of one measure lie between its least and largest number."""

    def __init__(self, lines: pd.DataFrame, head: Head, row: int) -> None:
        self.row, self.unit = row, str(lines["unit"].iloc[0])
        is_mine = ((lines["layer"] == head.layer) & (lines["head"] == head.head)).to_numpy()
        known = np.isfinite(lines["value"].to_numpy(float))
        self.others = lines[~is_mine & known]
        own = lines[is_mine]
        self.own: dict[str, float] = (
            {name: float(own[name].iloc[0]) for name in _NUMBERS} if len(own) else {}
        )
        numbers = np.array([*self.others["value"], *(self.own.get(n, np.nan) for n in _DRAWN)])
        numbers = numbers[np.isfinite(numbers)]
        self.low, self.high = (
            (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 1.0)
        )

    def at(self, value: Any) -> Any:
        spread = self.high - self.low
        return (value - self.low) / spread if spread > 0 else value * 0 + 0.5

    @property
    def value(self) -> float:
        return self.own.get("value", float("nan"))

    def words(self) -> str:
        own = self.own
        shown = rounded(self.value, own.get("ci_low", np.nan), own.get("ci_high", np.nan))
        unit = escape(self.unit) if np.isfinite(self.value) else "not measured"
        text = f"<b>{shown}</b> {unit}" if np.isfinite(self.value) else unit
        # In faint ink by its opacity, as the colour of a part of a text is not changed in the dark.
        reach = f"{plain(self.low)} to {plain(self.high)}"
        return f"{text}<br><span style='opacity:0.7'>{reach}</span>"

    def marks(self, head: Head) -> list[Any]:
        """Null band, interval and value of the head."""
        import plotly.graph_objects as go

        if not np.isfinite(self.value):
            return []
        own, traces = self.own, []
        null = [own["null_low"], own["null_high"]]
        if np.isfinite(null).all():
            traces.append(self._line(null, 14, "rgba(128, 128, 128, 0.35)", 0.004))
        interval = [own["ci_low"], own["ci_high"]]
        hover = [f"<b>{head}</b>", f"{rounded(self.value, *interval)} {escape(self.unit)}"]
        if np.isfinite(interval).all():
            traces.append(self._line(interval, 4, ACCENT, 0.0))
            hover.append(f"95 % interval {plain(interval[0])} to {plain(interval[1])}")
        if np.isfinite(null).all():
            hover.append(f"null {plain(null[0])} to {plain(null[1])}")
        hover.append(f"n {int(own['n'])}")
        point = go.Scatter(
            x=[self.at(self.value)],
            y=[self.row],
            mode="markers",
            marker={"size": 13, "color": ACCENT, "symbol": "diamond",
                    "line": {"color": PAPER, "width": 1.5}},
            customdata=[str(head)],
            text=["<br>".join(hover)],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        return [*traces, point]

    def _line(self, ends: list[float], width: int, colour: str, least: float) -> Any:
        import plotly.graph_objects as go

        low, high = (float(self.at(end)) for end in ends)
        spare = max(0.0, least - (high - low)) / 2
        return go.Scatter(
            x=[low - spare, high + spare],
            y=[self.row, self.row],
            mode="lines",
            line={"color": colour, "width": width},
            hoverinfo="skip",
        )


_NUMBERS = ("value", "ci_low", "ci_high", "n", "null_low", "null_high")
_DRAWN = ("value", "ci_low", "ci_high", "null_low", "null_high")


def _others(strips: Sequence[_Strip], head: Head) -> Any:
    import plotly.graph_objects as go

    x = np.concatenate([strip.at(strip.others["value"].to_numpy(float)) for strip in strips])
    y = np.concatenate([np.full(len(strip.others), strip.row) for strip in strips])
    names = [
        f"{head.tower}.L{layer}H{number}"
        for strip in strips
        for layer, number in zip(strip.others["layer"], strip.others["head"], strict=True)
    ]
    values = [plain(value) for strip in strips for value in strip.others["value"]]
    kind = go.Scattergl if len(x) > _MANY else go.Scatter
    return kind(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        mode="markers",
        marker={"size": 7, "color": FAINT, "opacity": 0.35},
        customdata=names,
        text=values,
        hovertemplate="<b>%{customdata}</b><br>%{text}<extra></extra>",
    )


def _label(name: Named) -> str:
    measure, variant = (escape(part.replace("_", " ")) for part in name)
    small = f"<br><span style='font-size:10px'>{variant}</span>" if variant else ""
    return f"{measure}{small}"
