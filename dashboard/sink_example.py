"""The part of the sinks page that shows them on a kept example: on its picture, in its text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.kept_patterns import KeptExample, kept_examples, tokens_of
from analysis.sinks.marked import marked_tokens
from dashboard.drawn import draw
from dashboard.empty import tell
from dashboard.figures import sinks_on_picture, sinks_on_text
from dashboard.guarded import fragment
from dashboard.sinks_shown import LETTERS
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

_PICTURES, _WIDE_LETTERS = 4, 88
_CAPTION = (
    "Marked: places that are a sink in this layer, the bluer in the more examples of the run; "
    "hover has how strong, and the weight they receive."
)


@fragment
def draw_example(view: View, tokens: pd.DataFrame, tower: str) -> None:
    """The sinks of a layer on an example of the run.

    Args:
        tokens: table ``sink_tokens`` of the study.
    """
    assert view.item is not None
    run, stamp = str(view.item.path), view.item.stamp
    kept = {example.id: example for example in _examples(run, stamp)}
    mine = tokens[tokens["tower"] == tower]
    if mine.empty:
        return
    if not kept:
        tell("This run keeps no example to show them on.")
        return
    own = replace(view, controls=st.container(horizontal=True, key="controls-sink-example"))
    example = kept[own.choose("example", "example", list(kept))]
    layer = own.slide("layer", "layer", sorted({int(layer) for layer in mine["layer"]}))
    positions = _tokens(run, stamp, example.id, tower)
    if positions.empty:
        tell(f"The run keeps no positions of {example.id} in {tower}.")
        return
    marked = marked_tokens(positions, mine[mine["layer"] == layer])
    beside = st.container(horizontal=True, gap="medium", key="sinks-example")
    for number, (file, wide, high) in enumerate(example.pictures[:_PICTURES]):
        patches = marked[marked["image"] == number]
        if file.is_file() and patches["left"].notna().any():
            figure = sinks_on_picture(_picture(str(file), stamp), (wide, high), patches)
            with beside.container(width=int(figure.layout.width)):
                draw(figure, f"sinks-picture-{number}", _CAPTION, patches)
    if (marked["text"].astype(str) != "").any():
        figure = sinks_on_text(marked, LETTERS if example.pictures else _WIDE_LETTERS)
        with beside.container(width=int(figure.layout.width)):
            draw(figure, "sinks-text", _CAPTION, marked)


@st.cache_data(max_entries=8, show_spinner=False)
def _examples(run: str, stamp: tuple[float, ...]) -> list[KeptExample]:
    return kept_examples(Path(run))


@st.cache_data(max_entries=32, show_spinner=False)
def _tokens(run: str, stamp: tuple[float, ...], example: str, tower: str) -> pd.DataFrame:
    return tokens_of(Path(run), example, tower)


@st.cache_resource(max_entries=32, show_spinner=False)
def _picture(file: str, stamp: tuple[float, ...]) -> Image:
    from probes.inputs import open_image

    return open_image(file)
