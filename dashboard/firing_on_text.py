"""A firing drawn on its text: each token tinted by what it brings to the feature."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.precision import plain
from dashboard.figure_look import ACCENT, FAINT, INK, PAPER, figure_look
from dashboard.firing_words import SIGNED_TINT, brought, heading, shown, tint_legend
from dashboard.text_lines import LETTER_PIXELS, LETTERS, MONO, laid_out, letters_of
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sae.reading.windows import FiringView

_LINE = 46
"""Pixels of a line of text with the numbers under it."""
_FEWEST_LINES = 2
"""The colour bar needs as much room."""
_WHOLE = 160
"""Texts of no more positions are shown whole."""
_STRONGEST = 6
_WORTH_SAYING = 0.2
"""Share of the largest value from which a number stands under its token."""


@dataclass(frozen=True)
class _Piece:
    """A token, or several positions in one box; what they bring together."""

    text: str
    hover: str
    value: float
    fires: bool = False


def has_text(view: FiringView) -> bool:
    """Whether the sources of a firing have tokens that can be shown."""
    return bool(view.attribution.sources.map.text)


def feature_on_text(view: FiringView, *, head: int | None = None, reach: int = 12) -> go.Figure:
    """The text with the tokens that a feature reads where it fires: blue for it, red against it.

    What a token brings is its direct attribution, summed over heads; the numbers of the strongest
    stand under them. The token with a frame is the one at which the feature fires. Long texts are
    cut down to what is around it and around the strongest sources; runs of patches and what is cut
    are one box each with its sum, so that all boxes add up to what all sources bring.

    Args:
        view: of `sae.firing_views` or of ``hs.read_feature``.
        head: only what this head brings.
        reach: tokens shown on either side where the text is cut.

    Raises:
        ValueError: the sources are no text, or there is no such head.
    """
    import plotly.graph_objects as go

    if not has_text(view):
        raise ValueError(
            f"The sources of {view.attribution.site} must be tokens of a text, those of tower "
            f"{view.attribution.sources.tower!r} have none. Draw it with `feature_on_picture`."
        )
    if reach < 0:
        raise ValueError(f"`reach` must not be negative, got {reach}.")
    pieces = list(_pieces(view, head, reach))
    top = max(abs(piece.value) for piece in pieces) or 1.0
    numbers = [plain(p.value, 2) if abs(p.value) >= _WORTH_SAYING * top else "" for p in pieces]
    widths = [
        max(letters_of(piece.text), len(number) * 0.85, 1) + 1
        for piece, number in zip(pieces, numbers, strict=True)
    ]
    left, line = laid_out(widths)
    figure = go.Figure([_boxes(pieces, left, widths, line, top)])
    figure.add_trace(
        go.Scatter(
            x=[start + width / 2 for start, width in zip(left, widths, strict=True)],
            y=[number + 0.4 for number in line],
            mode="text",
            text=numbers,
            textfont={"size": 10, "color": FAINT},
            hoverinfo="skip",
            cliponaxis=False,
        )
    )
    lines = max(line[-1] + 1, _FEWEST_LINES)
    margin = {"l": 24, "r": 104, "t": 116, "b": 24}
    total = float(brought(view.attribution, head).sum())
    figure.update_layout(
        figure_look(PAPER),
        title=heading(view, head, f"framed: where it fires · all boxes together {plain(total)}"),
        margin=margin,
        width=round(LETTERS * LETTER_PIXELS) + margin["l"] + margin["r"],
        height=lines * _LINE + margin["t"] + margin["b"],
        barmode="overlay",
        showlegend=False,
    )
    figure.update_xaxes(visible=False, range=[0, LETTERS])
    figure.update_yaxes(visible=False, range=[lines - 0.45, -0.55])
    return figure


def _boxes(
    pieces: Sequence[_Piece],
    left: Sequence[float],
    widths: Sequence[float],
    line: Sequence[int],
    top: float,
) -> Any:
    """Bars lying in lines of text: each knows its colour, its word and what hovering tells."""
    import plotly.graph_objects as go

    return go.Bar(
        x=widths,
        base=left,
        y=line,
        orientation="h",
        width=0.5,
        marker={
            "color": [piece.value for piece in pieces],
            "colorscale": SIGNED_TINT,
            "cmin": -top,
            "cmax": top,
            "showscale": True,
            "colorbar": tint_legend(),
            "line": {"color": ACCENT, "width": [2.5 if piece.fires else 0 for piece in pieces]},
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
    )


def _pieces(view: FiringView, head: int | None, reach: int) -> Iterator[_Piece]:
    """Boxes in the order of the text; together they bring what all sources bring."""
    direct, tokens = view.attribution, view.attribution.sources.map
    values = brought(direct, head).tolist()
    value_at: dict[int, float] = {}
    lost = 0.0
    for flat, value in zip(direct.sources.index.tolist(), values, strict=True):
        if flat < 0:
            lost += value
        else:
            value_at[flat] = value_at.get(flat, 0.0) + value
    fires = direct.destination if direct.site.tower == tokens.tower else -1
    pad = ROLES.index("pad")
    places = [at for at in sorted(value_at) if int(tokens.role[at]) != pad or value_at[at]]
    wanted = _wanted(places, value_at, fires, reach)
    for kind, run in _runs(places, [_kind(tokens, at, at in wanted) for at in places]):
        total = sum(value_at[at] for at in run)
        if kind == "token":
            for at in run:
                role = ROLES[int(tokens.role[at])]
                word = tokens.text[at].strip() or tokens.text[at].replace(" ", "␣") or f"[{role}]"
                hover = f"{shown(word)} · {role} · position {int(tokens.position[at])}"
                brings = f"<br>brings {plain(value_at[at])}"
                yield _Piece(word, hover + brings, value_at[at], at == fires)
            continue
        name = f"[{len(run)} patches]" if kind == "image" else f"… {len(run)} tokens …"
        hover = f"{len(run)} {'patches' if kind == 'image' else 'tokens that are not shown'}"
        yield _Piece(name, f"{hover}<br>bring {plain(total)} together", total, fires in run)
    if lost:
        yield _Piece("[elsewhere]", f"sources of unknown place<br>bring {plain(lost)}", lost)


def _kind(tokens: Any, at: int, wanted: bool) -> str:
    if ROLES[int(tokens.role[at])] == "image":
        return "image"
    return "token" if wanted else "cut"


def _wanted(
    places: Sequence[int], value_at: dict[int, float], fires: int, reach: int
) -> Iterable[int]:
    """Positions to be shown one by one: all of a short text."""
    if len(places) <= _WHOLE:
        return set(places)
    strongest = sorted(places, key=lambda at: -abs(value_at[at]))[:_STRONGEST]
    return {
        at for centre in [*strongest, fires] for at in range(centre - reach, centre + reach + 1)
    }


def _runs(places: Sequence[int], kinds: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    run: list[int] = []
    for number, (at, kind) in enumerate(zip(places, kinds, strict=True)):
        run.append(at)
        if number + 1 == len(places) or kinds[number + 1] != kind:
            yield kind, run
            run = []
