"""What a page says where it has nothing to show: a sentence, and the command that fills it."""

from __future__ import annotations

import streamlit as st


def tell(sentence: str, command: str = "") -> None:
    """Say why nothing is here, in one sentence, and what to run."""
    with st.container(border=True):
        st.text(sentence)
        if command:
            st.code(command, language="bash", wrap_lines=True)
