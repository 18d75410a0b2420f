"""How every figure looks: ink, paper, type, margins, and the colours of categories."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Palette:
    """What is not data: text, paper, faint text, ground behind data, selection, hatching, warning.

    Text has a contrast of 4.5 and more on paper.
    """

    ink: str
    paper: str
    faint: str
    ground: str
    accent: str
    hatch: str
    warning: str


LIGHT = Palette("#1b1f24", "#fbfaf8", "#5b626b", "#e7e5e1", "#2f6f8f", "#a09d97", "#b25c00")
DARK = Palette("#e6e3dd", "#16181b", "#a2a8b0", "#2a2d32", "#7fb6d0", "#6f6d68", "#e39a4f")
INK, PAPER, FAINT, GROUND, ACCENT = (
    LIGHT.ink, LIGHT.paper, LIGHT.faint, LIGHT.ground, LIGHT.accent,
)  # fmt: skip
HATCH = LIGHT.hatch
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


def in_dark(figure: go.Figure) -> go.Figure:
    """The same figure on dark paper: what is not data changes its colour, data keep theirs."""
    import plotly.graph_objects as go

    other = dict(zip(astuple(LIGHT), astuple(DARK), strict=True))
    return go.Figure(_recoloured(figure.to_dict(), other), skip_invalid=True)


def _recoloured(value: Any, other: dict[str, str]) -> Any:
    if isinstance(value, str):
        return other.get(value, value)
    if isinstance(value, dict):
        return {name: _recoloured(item, other) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (dict, str)):
        return [_recoloured(item, other) for item in value]
    return value
