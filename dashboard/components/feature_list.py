"""Features as a list of buttons, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import streamlit as st

from dashboard.components.source import component

_list = component("feature_list", "<div class='features'></div>")


class FeatureRow(TypedDict):
    """One line; ``share`` from 0 to 1 is drawn as a bar behind its text."""

    latent: int
    density: str
    share: float
    head: str
    example: str
    words: str


def feature_list(
    key: str,
    rows: Sequence[FeatureRow],
    picked: int | None,
    on_pick: Callable[[int], None],
) -> None:
    """Draw the list; ``on_pick`` is given the latent whose line is pressed."""

    def pressed() -> None:
        latent = st.session_state[key].get("picked")
        if isinstance(latent, (int, float)):
            on_pick(int(latent))

    _list(
        key=key,
        data={"rows": list(rows), "picked": picked},
        on_picked_change=pressed,
        height="content",
    )
