"""Start the app: a Streamlit server on this machine's own address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dashboard.figure_look import DARK, LIGHT, Palette

ADDRESS = "127.0.0.1"
LARGEST_UPLOAD_MEGABYTES = 20


def serve(places: Sequence[Path], port: int = 8501, open_browser: bool = True) -> None:
    """Serve the app until it is interrupted.

    Only this machine can reach it. Nothing is sent to anyone; no file is watched.
    """
    from streamlit.web import bootstrap

    options = settings(port, open_browser)
    bootstrap.load_config_options(options)
    script = str(Path(__file__).parent / "script" / "app.py")
    bootstrap.run(script, False, [str(place) for place in places], options)


def settings(port: int, open_browser: bool) -> dict[str, Any]:
    """Streamlit's options, by the names that its command line gives them."""
    found: dict[str, Any] = {
        "server_address": ADDRESS,
        "server_port": port,
        "server_headless": not open_browser,
        "server_fileWatcherType": "none",
        "server_runOnSave": False,
        "server_maxUploadSize": LARGEST_UPLOAD_MEGABYTES,
        "browser_gatherUsageStats": False,
        "client_toolbarMode": "minimal",
        "client_showErrorDetails": "none",
        "client_showSidebarNavigation": False,
        "theme_font": "system-ui, sans-serif",
        "theme_baseFontSize": 15,
        "theme_baseRadius": "4px",
    }
    for name, palette in (("light", LIGHT), ("dark", DARK)):
        found |= {f"theme_{name}_{key}": value for key, value in _theme(palette).items()}
    return found


def _theme(palette: Palette) -> dict[str, str]:
    return {
        "primaryColor": palette.accent,
        "backgroundColor": palette.paper,
        "secondaryBackgroundColor": palette.ground,
        "textColor": palette.ink,
        "linkColor": palette.accent,
    }
