"""What a page is given: the opened run, what the address says, and how to change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import streamlit as st

from analysis.run_folder import Run
from dashboard.shelf import Item, Shelf

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """The state of one page in one browser session.

    Everything that is chosen stands in the address under the name it was chosen by, so that a
    copied address reopens the same view. Names that mean the same on several pages are shared:
    ``run``, ``tower``, ``measure``, ``variant``, ``head``, ``example``, ``query``.

    Attributes:
        item, run: what is looked at; a page that needs a run always has both.
        controls: the row above the main picture; `choose` and its like draw into it.
        pages: to open, by name.
    """

    shelf: Shelf
    item: Item | None
    opened: Run | None
    controls: Any
    pages: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def run(self) -> Run:
        """The run."""
        if self.opened is None:
            raise LookupError("This page has no run; say `needs_run` in its Page.")
        return self.opened

    def choose(
        self,
        name: str,
        label: str,
        options: Sequence[T],
        default: T | None = None,
        text: Callable[[T], str] = str,
    ) -> T:
        """One of some options, in a drop-down of the control row; kept in the address.

        Where there is one option only, nothing is drawn.
        """
        known = list(options)
        if len(known) == 1:
            return known[0]
        index = known.index(default) if default in known else 0
        with self.controls:
            return st.selectbox(
                label,
                known,
                index=index,
                key=name,
                format_func=lambda option: text(option) or "plain",
                bind="query-params",
            )

    def slide(self, name: str, label: str, options: Sequence[T], default: T | None = None) -> T:
        """One of some ordered values, on a slider of the control row; kept in the address."""
        known = list(options)
        with self.controls:
            return st.select_slider(
                label,
                known,
                value=default if default in known else known[0],
                key=name,
                bind="query-params",
            )

    def write(self, name: str, label: str, default: str = "", hint: str = "") -> str:
        """A line of text in the control row; kept in the address."""
        with self.controls:
            return st.text_input(
                label, value=default, key=name, placeholder=hint, bind="query-params"
            )

    def value(self, name: str, default: str = "") -> str:
        """What the address says under a name that no control has; text from outside, unchecked."""
        return str(st.query_params.get(name, default))

    def put(self, **values: Any) -> None:
        """Change what is chosen, of controls and of other names alike; in a callback, or before
        the control is drawn. The page is drawn anew afterwards."""
        for name, value in values.items():
            st.session_state[name] = value

    def note(self, name: str, value: str) -> None:
        """Keep a value that no control has in the address; an empty one goes from it."""
        if value:
            st.query_params[name] = value
        elif name in st.query_params:
            del st.query_params[name]

    def open(self, page: str, **values: str) -> None:
        """Go to another page of the same run, with values in its address; draws nothing after."""
        found: dict[str, str] = {"run": self.item.name} if self.item else {}
        for name in values:
            # Otherwise the session's own value would win over the address.
            st.session_state.pop(name, None)
        _release([*found, *values])
        st.switch_page(self.pages[page], query_params=found | values)


def _release(names: Sequence[str]) -> None:
    """Let go of parameters that controls of this page are bound to.

    Streamlit 1.67 refuses to go to another page with a value for one of them, although the control
    goes with its page. To be deleted once `st.switch_page` takes them.
    """
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    if context is None:
        return
    with context.session_state.query_params() as parameters:
        for name in names:
            binding = parameters.get_binding_for_param(name)
            if binding is not None:
                parameters.unbind_widget(binding.widget_id)
