"""A figure on a page: the picture, the sentence under it, and its downloads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from dashboard.components.save_png import save_png
from dashboard.figure_look import in_dark
from dashboard.look import is_dark

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])")


def draw(
    figure: go.Figure,
    key: str,
    caption: str,
    table: pd.DataFrame | Callable[[], pd.DataFrame] | None = None,
    *,
    alt: str = "",
    wide: bool = False,
    on_select: Callable[[], None] | None = None,
    selection: Literal["points", "box", "lasso"] | tuple[str, ...] = "points",
) -> Any:
    """Draw a figure of `dashboard.figures`.

    Args:
        key: of the chart, in the session's state too; letters, digits, ``-`` and ``_``.
        caption: what a high value means, how it was made, n, source. Plain text; see `link`.
        table: the numbers behind it, for the download as CSV.
        alt: for screen readers; default: the figure's title.
        wide: as wide as its place, instead of the figure's own width.
        on_select: called when marks are clicked or lassoed; `clicked` then says which.

    Returns:
        What is selected, as `st.plotly_chart` gives it.
    """
    shown = in_dark(figure) if is_dark() else figure
    name = re.sub(r"\W+", "-", key).strip("-")
    options: dict[str, Any] = {}
    if on_select is not None:
        modes = (selection,) if isinstance(selection, str) else selection
        options = {"on_select": on_select, "selection_mode": modes}
    title = str((figure.layout.title.text or key) if figure.layout.title else key)
    found = st.plotly_chart(
        shown,
        key=key,
        theme=None,
        width="stretch" if wide else "content",
        alt=alt or title,
        config={
            "displaylogo": False,
            "displayModeBar": "hover",
            "toImageButtonOptions": {"format": "png", "scale": 2, "filename": name},
        },
        **options,
    )
    with st.container(key=f"caption-{name}"):
        st.markdown(caption)
    _downloads(figure, key, name, alt or title, table)
    return found


def clicked(key: str) -> list[Any]:
    """The `customdata` of the marks that are selected in the chart of a key."""
    state = st.session_state.get(key)
    points = state["selection"]["points"] if state else []
    return [point["customdata"] for point in points if "customdata" in point]


def escaped(text: str) -> str:
    """Text from data or a model, safe inside of markdown: it shows as it is, no mark acts."""
    return _MARKS.sub(r"\\\1", text)


def _downloads(
    figure: go.Figure,
    key: str,
    name: str,
    title: str,
    table: pd.DataFrame | Callable[[], pd.DataFrame] | None,
) -> None:
    def page() -> str:
        return figure.to_html(include_plotlyjs=True, full_html=True)

    def numbers() -> str:
        found: Any = table() if callable(table) else table
        return found.to_csv(index=False)

    with st.container(horizontal=True, key=f"downloads-{name}"):
        save_png(key, title)
        st.download_button(
            "HTML", page, f"{name}.html", "text/html", key=f"html-{name}", on_click="ignore"
        )
        if table is not None:
            st.download_button(
                "CSV", numbers, f"{name}.csv", "text/csv", key=f"csv-{name}", on_click="ignore"
            )
