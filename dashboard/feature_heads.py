"""Which heads a feature is of: how much of it each writes, and how much each makes it fire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from analysis.precision import plain
from dashboard.figure_look import CATEGORIES, FAINT, PAPER, figure_look

if TYPE_CHECKING:
    import plotly.graph_objects as go


class OfHeads(Protocol):
    """A feature with the shares of its heads: what ``hs.read_feature`` gives."""

    @property
    def site(self) -> str: ...
    @property
    def latent(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def firings(self) -> int: ...
    @property
    def decoder_shares(self) -> Sequence[float]: ...
    @property
    def firing_shares(self) -> Sequence[float]: ...


def feature_heads(feature: OfHeads) -> go.Figure:
    """Two bars for each head of a feature's layer; each kind of bar sums to 1.

    *Writes*: the head's share of the decoder row, by length of its slice. *Makes it fire*: its
    share of the pre-activation, by mean absolute size over all firings. The dotted line is an
    equal share. Shares that are not known have no bar, and the title says so.
    """
    import plotly.graph_objects as go

    heads = list(range(len(feature.decoder_shares)))
    kinds = (("writes", feature.decoder_shares), ("makes it fire", feature.firing_shares))
    figure = go.Figure()
    parts = [f"fires at {feature.firings:,} of {feature.rows:,} positions"]
    largest = 1 / len(heads)
    for ink, (name, shares) in zip(CATEGORIES, kinds, strict=False):
        known = [None if math.isnan(share) else share for share in shares]
        if None in known:
            parts.append(f"{name}: not known")
        largest = max([largest, *(share for share in known if share is not None)])
        figure.add_trace(
            go.Bar(
                x=heads,
                y=known,
                name=name,
                marker_color=ink,
                customdata=[
                    f"<b>{feature.site}H{head}</b><br>{name} {plain(share)}"
                    for head, share in zip(heads, shares, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    figure.add_hline(y=1 / len(heads), line={"color": FAINT, "width": 1, "dash": "dot"})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Latent {feature.latent} of {feature.site} by head",
            "subtitle": {"text": " · ".join(parts)},
        },
        width=min(max(52 * len(heads) + 220, 480), 1100),
        height=340,
        barmode="group",
        bargap=0.3,
        legend={"font": {"size": 12}},
    )
    step = max(1, -(-len(heads) // 16))
    figure.update_xaxes(
        title={"text": "head", "font": {"size": 12}, "standoff": 6},
        tickvals=heads[::step], tickfont={"size": 11}, showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(
        title={"text": "share of the feature", "font": {"size": 12}},
        range=[0, min(1.0, 1.1 * largest)],
        tickfont={"size": 11},
        gridcolor="rgba(128,128,128,0.2)",
        zeroline=False,
    )
    return figure
