"""An answer as words: tinted, underlined, marked as changed, and to be picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import streamlit as st

from dashboard.components.source import component

_words = component("answer_words", "<div class='answer'></div>")


class Piece(TypedDict, total=False):
    """One word.

    Attributes:
        tint: 0 to 1.
        wrong: it is underlined.
        changed: it has a ground.
        about: said when it is hovered, and to a screen reader.
    """

    text: str
    tint: float
    wrong: bool
    changed: bool
    about: str


def answer_words(
    key: str,
    pieces: Sequence[Piece],
    label: str,
    *,
    picked: int | None = None,
    scale: tuple[str, str, str] | None = None,
    on_pick: Callable[[int], None] | None = None,
) -> None:
    """Draw an answer.

    Args:
        label: what it is, for screen readers.
        picked: number of the word that is marked.
        scale: name of what the tint shows, its lower and upper end.
        on_pick: makes buttons of the words, and is given the number of the one that is pressed.
    """

    def pressed() -> None:
        number = st.session_state[key].get("picked")
        if on_pick is not None and isinstance(number, (int, float)):
            on_pick(int(number))

    _words(
        key=key,
        data={
            "pieces": list(pieces),
            "label": label,
            "picked": picked,
            "scale": scale,
            "pressable": on_pick is not None,
        },
        on_picked_change=pressed,
    )
