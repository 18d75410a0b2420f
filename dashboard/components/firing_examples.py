"""Where a feature fires: texts with tinted words and pictures with tinted patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from dashboard.components.source import component

_examples = component("firing_examples", "<div class='firings'></div>")


def firing_examples(
    key: str,
    groups: Sequence[tuple[str, Sequence[dict[str, Any]]]],
    largest: str,
    picked: str,
    on_pick: Callable[[str], None] | None,
) -> None:
    """Draw examples.

    Args:
        groups: a heading, empty for none, and rows as of `dashboard.feature_examples`.
        largest: the strength of the deepest tint, for the legend.
        picked: name of the row that is marked.
        on_pick: is given the name of the row that is pressed; None: rows cannot be pressed.
    """

    def pressed() -> None:
        name = st.session_state[key].get("picked")
        if on_pick is not None and isinstance(name, str):
            on_pick(name)

    _examples(
        key=key,
        data={
            "groups": [{"title": title, "rows": list(rows)} for title, rows in groups],
            "largest": largest,
            "picked": picked,
            "pressable": on_pick is not None,
        },
        on_picked_change=pressed,
        height="content",
    )
