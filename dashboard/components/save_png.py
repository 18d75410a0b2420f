"""The PNG of a chart, drawn by the browser."""

from __future__ import annotations

from dashboard.components.source import component

_button = component("save_png", "<button type='button'>PNG</button>")


def save_png(chart: str, title: str) -> None:
    """A button that saves the chart of a key (letters, digits, ``-`` and ``_``) as PNG."""
    _button(key=f"png-{chart}", data={"chart": chart, "title": title}, width="content")
