"""How every figure looks: ink, paper, type, margins, and the colours of categories."""

from __future__ import annotations

from typing import Any

INK, PAPER, FAINT, GROUND = "#1b1f24", "#fbfaf8", "#5b626b", "#e7e5e1"
ACCENT = "#2f6f8f"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CATEGORIES = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#000000",
)  # fmt: skip
"""Okabe and Ito: told apart by colour-blind readers as well."""


def figure_look(ground: str = GROUND) -> dict[str, Any]:
    """The layout that all figures share; ``ground`` is what lies behind the data."""
    return {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": ground,
        "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
        "title_x": 0.0,
        "title_xref": "paper",
        "title_font_size": 16,
        "title_subtitle_font": {"size": 12, "color": FAINT},
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
    }
