"""Figures as one page of HTML that needs nothing else: it opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from dashboard.figure_look import FAINT, FONT, INK, PAPER

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 16px; background: {paper}; color: {ink}; font: 14px/1.5 {font}; }}
p {{ max-width: 72ch; margin: 0 24px 32px; color: {faint}; font-size: 13px; }}
</style>
</head>
<body>
"""


def standalone_page(title: str, figures: Sequence[tuple[go.Figure, str]]) -> str:
    """Figures below each other, each with the sentence under it; about 5 MB of it is plotly.js.

    Args:
        title: of the page, plain text.
        figures: each with its caption, plain text.
    """
    if not figures:
        raise ValueError("`figures` must hold at least one figure, got none.")
    page = [_HEAD.format(title=escape(title), paper=PAPER, ink=INK, faint=FAINT, font=FONT)]
    for number, (figure, caption) in enumerate(figures):
        drawn = figure.to_html(
            full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False}
        )
        page.append(f"{drawn}\n<p>{escape(caption)}</p>\n")
    return "".join([*page, "</body>\n</html>\n"])
