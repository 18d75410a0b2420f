"""How the app looks: its style sheet, and whether the reader's browser shows it dark."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import streamlit as st

from dashboard.figure_look import DARK, LIGHT, Palette


def apply_look() -> None:
    """Put the style sheet on the page."""
    st.html(f"<style>{_style_sheet()}</style>")


def is_dark() -> bool:
    """Whether the page is shown light on dark."""
    return st.context.theme.type == "dark"


def palette() -> Palette:
    """The colours of everything that is not data."""
    return DARK if is_dark() else LIGHT


@cache
def _style_sheet() -> str:
    return Path(__file__).with_name("look.css").read_text(encoding="utf-8")
