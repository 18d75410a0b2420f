"""Heads with a share each, as a list of buttons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboard.components.source import component

_list = component("head_list", "<ol tabindex='0'></ol>")


def head_list(key: str, label: str, heads: Sequence[tuple[str, float, str]]) -> str:
    """A list to open heads from.

    Args:
        label: for screen readers.
        heads: name, a share from 0 to 1 that is drawn as a bar, and what stands beside it.

    Returns:
        The name of the head that was just pressed, as the browser says it; else empty.
    """
    rows: list[dict[str, Any]] = [
        {"name": name, "share": share, "text": text} for name, share, text in heads
    ]
    found = _list(
        key=key,
        data={"label": label, "rows": rows},
        on_opened_change=lambda: None,
        height="content",
    )
    return str(found.opened or "")
