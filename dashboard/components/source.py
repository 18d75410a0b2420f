"""Components from the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

_HERE = Path(__file__).parent


def component(name: str, html: str = "") -> Any:
    """The component of ``NAME.js`` and, if it is there, ``NAME.css``.

    What comes from data is passed when it is mounted, as ``data``, and must be shown by
    ``textContent``: html, css and js are trusted.
    """
    style = _HERE / f"{name}.css"
    return st.components.v2.component(
        f"headscope.{name}",
        html=html,
        css=style.read_text(encoding="utf-8") if style.exists() else None,
        js=(_HERE / f"{name}.js").read_text(encoding="utf-8"),
    )
