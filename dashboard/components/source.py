"""Components from the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamlit.components.v2 import component as mounted

_HERE = Path(__file__).parent


def component(name: str, html: str = "", before: str = "") -> Any:
    """The component of ``NAME.js`` and, if it is there, ``NAME.css``.

    Args:
        before: a script without exports that several components share, put in front.

    What comes from data is passed when it is mounted, as ``data``, and must be shown by
    ``textContent``: html, css and js are trusted.
    """
    style = _HERE / f"{name}.css"
    scripts = [_HERE / f"{script}.js" for script in (before, name) if script]
    return mounted(
        f"headscope.{name}",
        html=html,
        css=style.read_text(encoding="utf-8") if style.exists() else None,
        js="\n".join(script.read_text(encoding="utf-8") for script in scripts),
    )
