"""What goes wrong while something is drawn is told in its place; the log has the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import streamlit as st

from analysis.run_files import RunError
from dashboard.empty import tell

_log = logging.getLogger("headscope.dashboard")
F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Tell what goes wrong inside in a sentence; Streamlit's own signals pass."""
    try:
        yield
    except RunError as error:
        tell(str(error))
    except Exception as error:
        if type(error).__module__.startswith("streamlit"):
            raise  # rerun, stop, switch
        # Whatever it is, the reader of a damaged run gets a sentence.
        _log.exception("%s cannot be drawn", what)
        tell(
            f"Something in {what} cannot be shown ({type(error).__name__}: {error}). The server's "
            "log tells more; other parts may work."
        )


def fragment(draw: F) -> F:
    """A part of a page that is drawn anew by itself, guarded then too: the frame is not around."""

    @wraps(draw)
    def safely(*given: Any, **named: Any) -> None:
        with guarded("this part of the page"):
            draw(*given, **named)

    return st.fragment(safely)  # pyright: ignore[reportReturnType]
