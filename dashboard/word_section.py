"""The part of a page that shows an answer word by word: VHD of the picked one, and its patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from analysis.kept_patterns import KeptExample, KeptPatterns, tokens_of
from analysis.precision import plain
from analysis.run_files import RunError
from analysis.vision.kept_words import FILE, OWN, WORDS, KeptWords, read_kept_words
from analysis.vision.word_patches import word_patches
from analysis.vision.words import HALLUCINATED, TRUE
from dashboard.components.answer_words import Piece, answer_words
from dashboard.drawn import clicked, draw, escaped
from dashboard.empty import tell
from dashboard.figures import patches_of_word, word_map
from dashboard.guarded import fragment
from dashboard.head_map import click_targets
from dashboard.shelf import Item
from dashboard.view import View
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

SECTION, TOWER = "vision", "language"
_MAP, _PATCHES, _ANSWER = "vision-word-vhd", "vision-patches", "vision-answer"
_SAID = {TRUE: "an object that is there", HALLUCINATED: "an object that is not there"}


def kept_words(item: Item) -> KeptWords | None:
    """The words that a run keeps, read once; None where it keeps none."""
    section = item.path / SECTION
    files = (section / f"{WORDS}.parquet", section / FILE)
    return _words(str(section), tuple(f.stat().st_mtime if f.exists() else 0.0 for f in files))


def first_to_show(words: pd.DataFrame) -> int:
    """Of an answer's words the first that is made up, else that of the highest T-VHD; among those
    whose patches are kept, if there are any."""
    known = (words["query_first"] >= 0).to_numpy()
    wrong = (words["group"] == HALLUCINATED).to_numpy() & (known | ~known.any())
    if wrong.any():
        return int(wrong.argmax())
    return int(np.where(known | ~known.any(), words["t_vhd"].to_numpy(), -1.0).argmax())


@fragment
def draw_words(view: View, words: KeptWords, example: KeptExample) -> None:
    """The answer; below it the map of the picked word, and the patches that a head reads for it."""
    mine = words.of(example.id)
    if mine.empty:
        tell("The model wrote nothing about this picture. Choose another example.")
        return
    line = _picked(view, mine)
    grid = words.vhd[mine.index[line]]
    head = _head(view, grid)
    picture, text = st.columns([2, 3], gap="medium")
    with text:
        _draw_answer(view, words, mine, line, example)
        _draw_map(view, words, mine, line, grid, head)
    with picture:
        _draw_patches(view, mine.iloc[line], head, example)


def _draw_answer(
    view: View, words: KeptWords, mine: pd.DataFrame, line: int, example: KeptExample
) -> None:
    most = float(words.frame["t_vhd"].max()) or 1.0
    pieces = [
        Piece(
            text=word.text,
            tint=max(word.t_vhd, 0.0) / most,
            wrong=word.group == HALLUCINATED,
            about=", ".join(part for part in (f"T-VHD {plain(word.t_vhd)}", _SAID.get(word.group))
                            if part),
        )
        for word in mine.itertuples()
    ]  # fmt: skip
    own = str(mine["answer"].iloc[0]) == OWN
    whose = "What the model wrote" if own else "The answer of the data"
    asked = f" to {example.question!r}" if example.question else ""
    st.markdown(f"{whose}{escaped(asked)}. Click a word, or use the arrow keys.")
    answer_words(
        _ANSWER,
        pieces,
        whose,
        picked=line,
        scale=("T-VHD", "0", plain(most)),
        on_pick=lambda number: view.note("word", str(number)),
    )
    with st.container(key="caption-vision-answer"):
        st.markdown(
            "Stronger tint: heads depend more on the image where the word is predicted (T-VHD: the "
            "largest quarter of each layer's VHD, summed). Underlined: an object that is not in "
            "the image. He et al. 2024 (arXiv 2412.13949)."
        )


def _draw_map(
    view: View, words: KeptWords, mine: pd.DataFrame, line: int, grid: np.ndarray, head: Head
) -> None:
    def pick() -> None:
        names = [name for name in clicked(_MAP) if isinstance(name, str)]
        if names:
            view.note("head", str(Head.parse(names[0])))

    word = mine.iloc[line]
    largest = float(np.nanmax(words.vhd[mine.index], initial=0.0))
    figure = word_map(grid, str(word["text"]), float(word["t_vhd"]), largest, TOWER)
    layers, heads = grid.shape
    figure.add_trace(click_targets((layers, heads), TOWER, str(head)))
    draw(
        figure,
        _MAP,
        "High: the head gives out something else when the image is taken away, where this word is "
        "predicted. One scale for all words of this answer; one answer, no average. A click shows "
        "where the head looks.",
        lambda: _table(mine.iloc[line], grid),
        on_select=pick,
    )


def _draw_patches(view: View, word: pd.Series, head: Head, example: KeptExample) -> None:
    if not example.pictures:
        tell("The picture of this example is not kept.")
        return
    patches, why = None, example.why_not
    assert view.item is not None
    if example.patterns is not None:
        try:
            patches = _patches(view.item, example, head, word)
        except (RunError, ValueError, KeyError) as error:
            why = str(error.args[0]) if error.args else str(error)
        if patches is None and not why:
            why = (
                "Patterns are kept of the text of the data. From the first word in which the model "
                "wrote something else on, none are known; choose a word before."
            )
    number = int(patches.groupby("image")["weight"].sum().idxmax()) if patches is not None else 0
    file, *size = example.pictures[min(number, len(example.pictures) - 1)]
    boxes = list(zip(example.objects, example.boxes, strict=False))
    try:
        figure = patches_of_word(
            file,
            (size[0], size[1]),
            None if patches is None else patches[patches["image"] == number],
            word=str(word["text"]),
            head=str(head),
            objects=boxes if len(example.pictures) == 1 else (),
        )
    except (OSError, ValueError) as error:
        tell(str(error))
        return
    kept = "" if example.kept != "strongest" else " Of each query only the strongest keys are kept."
    draw(
        figure,
        _PATCHES,
        "Bluer: more of the head's weight, at the position that predicts the word; the scale ends "
        f"at the largest patch. Dotted: objects of the data.{kept}"
        if patches is not None
        else "Dotted: objects of the data.",
        patches,
    )
    if patches is None:
        tell(why)
    with st.container(horizontal=True):
        if "head" in view.pages and st.button(f"Open {head}", key="vision-open-head"):
            query = int(word["query_first"])
            asked = {"query": str(query)} if query >= 0 else {}
            view.open("head", head=str(head), example=example.id, **asked)
        if view.value("head"):
            st.button("Strongest head of each word", on_click=view.note, args=("head", ""))


def _patches(item: Item, example: KeptExample, head: Head, word: pd.Series) -> pd.DataFrame | None:
    """What a head reads of the image; None where the text before the word is another one."""
    if int(word["query_first"]) < 0 or example.patterns is None:
        return None
    pattern = _opened(str(example.patterns), example.patterns.stat().st_mtime).head(head)
    tokens = _tokens(str(item.path), item.stamp, example.id, pattern.key_tower)
    found = word_patches(pattern, tokens, int(word["query_first"]), int(word["query_last"]))
    if found.empty:
        raise ValueError("No position of this text is known to be a patch of the image.")
    return found


def _picked(view: View, mine: pd.DataFrame) -> int:
    """Which word the address names; else `first_to_show`."""
    asked = view.value("word")
    if asked.isascii() and asked.isdigit() and int(asked) < len(mine):
        return int(asked)
    return first_to_show(mine)


def _head(view: View, grid: np.ndarray) -> Head:
    """Which head the address names; else the one of the highest VHD at this word."""
    layer, number = np.unravel_index(np.nan_to_num(grid, nan=-1.0).argmax(), grid.shape)
    highest = Head(TOWER, int(layer), int(number))
    try:
        asked = Head.parse(view.value("head"))
    except ValueError:
        return highest
    known = asked.tower == TOWER and asked.layer < grid.shape[0] and asked.head < grid.shape[1]
    return asked if known else highest


def _table(word: pd.Series, grid: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    layers, heads = np.indices(grid.shape)
    told = {name: word[name] for name in ("example", "word", "text")}
    return pd.DataFrame(
        {**told, "layer": layers.ravel(), "head": heads.ravel(), "vhd": grid.ravel()}
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def _words(section: str, stamp: tuple[float, ...]) -> KeptWords | None:
    return read_kept_words(Path(section))


@st.cache_resource(max_entries=8, show_spinner=False)
def _opened(file: str, stamp: float) -> KeptPatterns:
    return KeptPatterns(Path(file))


@st.cache_data(max_entries=16, show_spinner=False)
def _tokens(run: str, stamp: tuple[float, ...], example: str, tower: str) -> pd.DataFrame:
    return tokens_of(Path(run), example, tower)
