"""The pattern under the pointer of an atlas's map, and how much a lasso sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dashboard.components.source import component

_HTML = """
<canvas role="img" width="256" height="256"></canvas>
<p class="head"></p><p class="facts"></p>
<button type="button" hidden>Open this head</button>
"""
_view = component("pattern_view", _HTML)


def pattern_view(key: str, chart: str, sheet: Mapping[str, Any], on_ask: Callable[[], None]) -> Any:
    """What lies under the pointer in the chart of a key, drawn by the browser.

    The browser keeps every pattern that it was given, and asks for others once the pointer rests
    on one: ``asked`` of the state is then its sample. A click keeps one: ``kept``.

    Args:
        sheet: ``url``, a picture with the patterns below each other; for each of them ``samples``,
            ``titles``, ``facts``; ``kept``, the sample that is kept, -1 for none; ``why``, a
            sentence where there is no picture.
    """
    return _view(
        key=key,
        data={"chart": chart, **sheet},
        default={"asked": -1, "kept": sheet["kept"]},
        on_asked_change=on_ask,
        on_kept_change=on_ask,
        on_opened_change=lambda: None,
        height="content",
    )
