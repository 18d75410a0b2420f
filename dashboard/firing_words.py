"""What figures of a firing share: title, words from data made safe, tints.

Blue speaks for the feature, red against it, as signed effects do everywhere. A value of 0 is
transparent, so that what lies below stays visible, on light and on dark paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.precision import plain
from dashboard.figure_look import FAINT

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sae.reading.direct_attribution import DirectAttribution
    from sae.reading.windows import FiringView, Window

STRONGEST = 0.65
"""Opacity of the largest value: text on it keeps a contrast of 4.5, a picture stays visible."""
TINT = ((0.0, "rgba(33,102,172,0)"), (1.0, f"rgba(33,102,172,{STRONGEST})"))
SIGNED_TINT = (
    (0.0, f"rgba(178,24,43,{STRONGEST})"),
    (0.5, "rgba(247,246,244,0)"),
    (1.0, f"rgba(33,102,172,{STRONGEST})"),
)
_LONGEST = 40
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
_SIGNS = {"\n": "⏎", "\r": "⏎", "\t": "⇥"}


def shown(text: str, longest: int = _LONGEST) -> str:
    """Text from data or a model for a figure, whose texts know some HTML and formulas: safe, short.

    >>> shown("a <b>\\n")
    'a &lt;b&gt;⏎'
    """
    signs = "".join(_SIGNS.get(sign, sign) for sign in text)
    cut = signs if len(signs) <= longest else signs[: longest - 1] + "…"
    return "".join(_ENTITIES.get(sign, sign) for sign in cut if sign.isprintable())


def brought(direct: DirectAttribution, head: int | None = None) -> Float[Tensor, "source"]:
    """What each source brings, by all heads or by one.

    Raises:
        ValueError: the site has no such head.
    """
    if head is None:
        return direct.by_source
    if not 0 <= head < len(direct.joint):
        raise ValueError(
            f"`head` must be between 0 and {len(direct.joint) - 1}, got {head}. Choose one of "
            f"{direct.site}, or None for all."
        )
    return direct.joint[head]


def heading(view: FiringView, head: int | None, more: str) -> dict[str, Any]:
    """The title of a figure: which feature fires where; and its sum, under the window's words.

    Args:
        more: what this figure shows of the sum.
    """
    direct, window = view.attribution, view.destination
    through = "" if head is None else f" through H{head}"
    lines = [_in_window(window)] if window.words and window.patch is None else []
    lines.append(
        f"{shown(view.firing.example)} · strength {plain(view.firing.strength)} · pre-activation "
        f"{plain(direct.pre_activation)} = {plain(direct.constant)} + sources "
        f"{plain(float(direct.joint.sum()))}"
    )
    return {
        "text": f"Latent {direct.latent} of {direct.site} at {place(window)}{through}",
        "subtitle": {"text": "<br>".join([*lines, more]), "font": {"size": 12, "color": FAINT}},
        "yref": "container",
        "y": 1.0,
        "yanchor": "top",
        "pad": {"t": 16},
    }


def place(window: Window) -> str:
    """A patch with its image and tile where there are several, a word between signs, or a role.

    >>> from sae.reading.windows import Window
    >>> place(Window("language", 3, "text", ("a", " cat", "sat"), 1))
    '»cat«'
    """
    if window.patch is not None:
        patch = window.patch
        image = f"image {patch.image + 1}, " if patch.image > 0 else ""
        tile = f"tile {patch.tile}, " if patch.tile > 0 else ""
        return f"{image}{tile}patch ({patch.row}, {patch.column})"
    if not window.words:
        return f"the {window.role} position"
    return f"»{shown(window.words[window.centre].strip())}«"


def _in_window(window: Window) -> str:
    words = [shown(word, 24) for word in window.words]
    # Tokens that bring their own spaces are parts of words; others are words.
    between = "" if any(word[:1].isspace() for word in window.words[1:]) else " "
    words[window.centre] = f"<b>{words[window.centre]}</b>"
    return between.join(words).strip()


def tint_legend() -> dict[str, Any]:
    """The colour bar of what sources bring."""
    return {
        "title": {"text": "brings", "side": "top", "font": {"size": 12}},
        "thickness": 12,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        "nticks": 5,
        "x": 1.02,
        "xanchor": "left",
    }
