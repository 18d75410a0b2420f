"""A figure of heads whose marks open the page of their head when they are clicked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from dashboard.drawn import clicked, draw
from dashboard.view import View
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_PAGE = "head"
_ASKED = "head-that-was-clicked"


def draw_heads(
    view: View,
    figure: go.Figure,
    key: str,
    caption: str,
    table: pd.DataFrame | Callable[[], pd.DataFrame] | None = None,
    *,
    wide: bool = True,
) -> None:
    """As `dashboard.drawn.draw`; the `customdata` of a mark is the name of its head."""

    def pick() -> None:
        names = [name for name in clicked(key) if isinstance(name, str)]
        if names:
            st.session_state[_ASKED] = names[0]

    draw(figure, key, caption, table, wide=wide, on_select=pick)
    # Not in the callback: from there no other page can be opened.
    name = st.session_state.pop(_ASKED, None)
    if name is not None and _PAGE in view.pages:
        view.open(_PAGE, head=str(Head.parse(name)))
