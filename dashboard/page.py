"""What a page of the app is: a file in `pages/`, found by the entry points `headscope.pages`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboard.view import View

GROUP = "headscope.pages"
ORDER = (
    "overview", "head", "vision", "sinks", "importance", "atlas", "features", "compare", "live",
)  # fmt: skip
"""Our own; a user's come after them, by name."""


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        name: in the address, and what other pages open it by.
        title: in the navigation.
        sentence: what it is for, in one sentence.
        show: draws it; called at each rerun with the view of what is chosen.
        needs_run: whether it is of one run, chosen above it. Others choose for themselves.
    """

    name: str
    title: str
    sentence: str
    show: Callable[[View], None]
    needs_run: bool = True


@cache
def all_pages() -> tuple[Page, ...]:
    """Every page that is installed, in the order of the navigation.

    Raises:
        TypeError: an entry point that is no page.
    """
    found: dict[str, Page] = {}
    for point in entry_points(group=GROUP):
        page = point.load()
        if not isinstance(page, Page):
            raise TypeError(
                f"Entry point {point.name!r} of {GROUP} must name a dashboard.page.Page, got "
                f"{type(page).__name__}."
            )
        found[page.name] = page
    ours = [found.pop(name) for name in ORDER if name in found]
    return (*ours, *(found[name] for name in sorted(found)))
