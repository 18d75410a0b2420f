"""Sink tokens where they stand: patches on a picture, words in a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.precision import plain
from dashboard.figure_look import FAINT, INK, PAPER, figure_look
from dashboard.firing_words import STRONGEST, TINT, shown
from dashboard.text_lines import LETTER_PIXELS, MONO, laid_out, letters_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from PIL.Image import Image

_SIDE = 300
"""Length of a picture's longer side on the figure, in pixels of the screen."""
_LINE = 36
LETTERS = 44
"""Of a line; as `sinks_on_text` takes them."""
_WHOLE, _REACH, _ENDS = 200, 6, 20
"""Texts of no more tokens are shown whole; else what is near a sink, and both ends."""
_FAINTEST = 0.1
# Accent, written otherwise: `in_dark` must leave it, for the picture below stays too.
_FRAME, _HALO, _BLUE = "rgb(47,111,143)", "#ffffff", "33,102,172"


def sinks_on_picture(picture: Image, size: tuple[int, int], marked: pd.DataFrame) -> go.Figure:
    """The patches of a picture that are at a sink's place: the bluer, the more often they are one.

    Args:
        picture: or a thumbnail of it.
        size: width and height of the original, in whose pixels patches lie.
        marked: positions of one example and image, as `analysis.sinks.marked` gives them.

    Raises:
        ValueError: it is not known where any patch lies.
    """
    import plotly.graph_objects as go

    patches = marked[(marked["role"] == "image") & marked["left"].notna()]
    if patches.empty:
        raise ValueError("Some patch of the picture must have a known place, got none.")
    sinks = patches[patches["share"] > 0].sort_values("share")
    wide, high = size
    figure = go.Figure()
    for line in sinks.itertuples():
        x = [line.left, line.right, line.right, line.left, line.left]
        y = [line.top, line.top, line.bottom, line.bottom, line.top]
        opacity = STRONGEST * max(line.share, _FAINTEST)
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line={"color": _HALO, "width": 4},
                                    hoverinfo="skip"))  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines",
                fill="toself",
                fillcolor=f"rgba({_BLUE},{opacity:.3f})",
                line={"color": _FRAME, "width": 2},
                hoveron="fills",
                text=_told(line, f"patch row {line.row}, column {line.column}"),
                hoverinfo="text",
            )
        )
    figure.add_trace(_legend())
    figure.add_layout_image(
        source=_enlarged(picture), xref="x", yref="y", x=0, y=0, sizex=wide, sizey=high,
        sizing="stretch", layer="below",
    )  # fmt: skip
    scale = _SIDE / max(wide, high)
    margin = {"l": 8, "r": 96, "t": 84, "b": 16}
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "Sinks on the picture",
            "subtitle": {"text": f"{len(sinks)} of {len(patches)} patches"},
        },
        margin=margin,
        width=round(max(wide * scale, 160) + margin["l"] + margin["r"]),
        height=round(max(high * scale, 120) + margin["t"] + margin["b"]),
        showlegend=False,
    )
    axes = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(axes, range=[0, wide], constraintoward="left")
    figure.update_yaxes(axes, range=[high, 0], constraintoward="top", scaleanchor="x")
    return figure


def sinks_on_text(marked: pd.DataFrame, letters: int = LETTERS) -> go.Figure:
    """The tokens of a text, those at a sink's place tinted: the bluer, the more often it is one.

    A run of patches is one box. Long texts are cut down to both ends and to what is near a sink.

    Args:
        marked: positions of one example, as `analysis.sinks.marked` gives them.
        letters: of a line.

    Raises:
        ValueError: they have no words.
    """
    import plotly.graph_objects as go

    if not (marked["text"].astype(str) != "").any():
        raise ValueError("Some position must have a word, got none. Draw it on its picture.")
    pieces = list(_pieces(marked))
    widths = [float(max(letters_of(piece.text), 1) + 1) for piece in pieces]
    left, line = laid_out(widths, letters)
    lines = line[-1] + 1
    words = int((marked["role"] != "image").sum())
    sinks = int(((marked["share"] > 0) & (marked["role"] != "image")).sum())
    margin = {"l": 8, "r": 96, "t": 84, "b": 16}
    figure = go.Figure(
        [
            go.Bar(
                x=widths,
                base=left,
                y=line,
                orientation="h",
                width=0.72,
                marker={
                    "color": [piece.share for piece in pieces],
                    "colorscale": TINT,
                    "cmin": 0,
                    "cmax": 1,
                    "line": {"color": FAINT, "width": [float(piece.framed) for piece in pieces]},
                },
                text=[shown(piece.text) for piece in pieces],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                constraintext="none",
                insidetextfont={"family": MONO, "size": 13, "color": INK},
                customdata=[piece.hover for piece in pieces],
                hovertemplate="%{customdata}<extra></extra>",
                cliponaxis=False,
            ),
            _legend(),
        ]
    )
    figure.update_layout(
        figure_look(PAPER),
        title={"text": "Sinks in the text", "subtitle": {"text": f"{sinks} of {words} tokens"}},
        margin=margin,
        width=round(letters * LETTER_PIXELS) + margin["l"] + margin["r"],
        height=max(lines * _LINE, 120) + margin["t"] + margin["b"],
        showlegend=False,
        barmode="overlay",
    )
    figure.update_xaxes(visible=False, range=[0, letters])
    figure.update_yaxes(visible=False, range=[max(lines, 120 / _LINE) - 0.5, -0.5])
    return figure


@dataclass(frozen=True)
class _Piece:
    text: str
    hover: str
    share: float
    framed: bool = False


def _pieces(marked: pd.DataFrame) -> Iterator[_Piece]:
    lines = list(marked.itertuples())
    for kind, run in _runs(_kinds(marked), lines):
        if kind == "image":
            sinks = [line for line in run if line.share > 0]
            more = f", {len(sinks)} sinks" if sinks else ""
            most = max((line.share for line in sinks), default=0.0)
            name = f"[{len(run)} patches{more}]"
            yield _Piece(name, f"{name[1:-1]}: see the picture", most, True)
        elif kind == "cut":
            name = f"… {len(run)} tokens …"
            yield _Piece(name, f"{len(run)} tokens without a sink that are not shown", 0.0)
        else:
            for line in run:
                word = str(line.text).strip() or str(line.text).replace(" ", "␣")
                word = word or f"[{line.role}]"
                what = f"{shown(word)} · {shown(str(line.role))} · position {line.position}"
                yield _Piece(word, _told(line, what), float(line.share), line.share > 0)


def _kinds(marked: pd.DataFrame) -> list[str]:
    image = (marked["role"] == "image").to_numpy()
    near = np.ones(len(marked), bool)
    if int((~image).sum()) > _WHOLE:
        sinks = np.flatnonzero((marked["share"] > 0).to_numpy() & ~image)
        near[_ENDS:-_ENDS] = False
        for at in sinks.tolist():
            near[max(at - _REACH, 0) : at + _REACH + 1] = True
    return ["image" if i else "token" if n else "cut" for i, n in zip(image, near, strict=True)]


def _runs(kinds: Sequence[str], lines: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    run: list[Any] = []
    for number, line in enumerate(lines):
        run.append(line)
        if number + 1 == len(lines) or kinds[number + 1] != kinds[number]:
            yield kinds[number], run
            run = []


def _told(line: Any, what: str) -> str:
    if not line.share > 0:
        return f"{what}<br>no sink"
    strength = "norm over the image's median" if line.kind == "artefact" else "phi"
    said = f"<b>{what}</b><br>a sink in {line.share:.0%} of the examples"
    said += f"<br>{strength} {plain(line.score)}"
    if np.isfinite(line.received):
        said += f"<br>receives {plain(line.received)} of each query that may read it"
        said += f"<br>under uniform attention {plain(line.received_null)}"
    return said


def _legend() -> Any:
    """The colour bar of a figure whose marks are tinted one by one."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        marker={
            "color": [0.0],
            "colorscale": TINT,
            "cmin": 0,
            "cmax": 1,
            "showscale": True,
            "colorbar": {
                "title": {"text": "share of<br>examples", "side": "top", "font": {"size": 12}},
                "thickness": 12,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
                "nticks": 5,
            },
        },
    )


def _enlarged(picture: Image) -> Image:
    """As many pixels as the screen shows: small pictures would else be blurred by the browser."""
    from PIL import Image as images

    longest = max(picture.size)
    if longest >= _SIDE:
        return picture
    times = -(-_SIDE // longest)
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, images.Resampling.NEAREST)
