"""What a feature speaks for and against: words by their effect on the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.precision import plain
from dashboard.figure_look import FAINT, PAPER, figure_look
from dashboard.firing_words import shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FOR, _AGAINST = "rgb(33,102,172)", "rgb(178,24,43)"
_LINE, _LONGEST = 22, 18


def feature_words(
    latent: int,
    words: Sequence[tuple[str, float]],
    against: Sequence[tuple[str, float]],
    what: str = "word",
) -> go.Figure:
    """Bars of the words with the largest and the most negative effects, blue for, red against.

    An effect is what a unit of the feature's strength adds to a word's logit along the residual
    stream, the final norm's scale left out.

    Args:
        words: with effects, largest first; those below 0 are left out.
        against: most negative first; those above 0 are left out.
        what: ``word`` or ``class``.
    """
    import plotly.graph_objects as go

    lines = [pair for pair in words if pair[1] > 0]
    lines += [pair for pair in reversed(against) if pair[1] < 0]
    texts = [shown(word.strip() or word.replace(" ", "␣"), _LONGEST) for word, _ in lines]
    values = [value for _, value in lines]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=list(range(len(lines))),
            orientation="h",
            marker_color=[_FOR if value > 0 else _AGAINST for value in values],
            customdata=[
                f"<b>{text}</b><br>{plain(value)}"
                for text, value in zip(texts, values, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"What latent {latent} speaks for",
            "subtitle": {"text": f"largest and most negative, by {what}"},
        },
        margin={"l": 120, "r": 24, "t": 84, "b": 56},
        width=380,
        height=max(_LINE * len(lines) + 140, 340),
        bargap=0.25,
        showlegend=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(lines))), ticktext=texts, tickfont={"size": 12},
        range=[len(lines) - 0.4, -0.6], showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_xaxes(
        title={"text": "change of the logit per unit of strength", "font": {"size": 12}},
        tickfont={"size": 11}, gridcolor="rgba(128,128,128,0.2)",
        zeroline=True, zerolinecolor=FAINT, nticks=6,
    )  # fmt: skip
    return figure
