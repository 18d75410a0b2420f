"""Vision: what an answer takes from its image, word by word, layer by layer, and under an edit."""

from __future__ import annotations

import streamlit as st

from analysis.vision.depth import over_depth
from analysis.vision.kept_words import KeptWords
from analysis.vision.words import HALLUCINATED
from dashboard.before_after import draw_before_after
from dashboard.drawn import draw
from dashboard.empty import tell
from dashboard.figures import (
    dominance_by_layer,
    modality_flow_by_layer,
    t_vhd_by_group,
    t_vhd_compared,
)
from dashboard.narrowed import only_measures
from dashboard.opened_runs import section_table
from dashboard.page import Page
from dashboard.pattern_section import examples_of
from dashboard.view import View
from dashboard.word_section import SECTION, TOWER, draw_words, kept_words

_FLOW, _SHARE, _MDI = "modality_flow", "text_share", "modality_dominance"
_SEES = "vision-language"
_LAST = "vision-last-example"


def show(view: View) -> None:
    """Words, flow, the comparison of words, and edits."""
    model = view.run.plan.get("model", {})
    if model.get("kind", _SEES) != _SEES:
        tell(
            f"{model.get('name', 'This model')} does not read images and text, so there is nothing "
            "to take from an image. Choose a run of one that does.",
            "headscope score shapes-llava --measures all,vhd --out runs/llava",
        )
        return
    example = _answers(view)
    st.subheader("Layer by layer", anchor=False)
    _depth(view)
    st.subheader("True and hallucinated words", anchor=False)
    _compared(view)
    draw_before_after(view, example)


def _answers(view: View) -> str:
    """Draw an answer; returns the name of its example."""
    assert view.item is not None
    words, kept = kept_words(view.item), examples_of(view.item)
    known = {one.id: one for one in kept if words is not None and len(words.of(one.id))}
    if words is None or not known:
        tell(
            "This run keeps no answer with VHD of its words. Score with `vhd` to another folder:",
            f"{_command(view)} --measures all,vhd --out runs/with-vhd",
        )
        return ""
    example = known[view.choose("example", "example", list(known), _telling(words, list(known)))]
    if st.session_state.get(_LAST, example.id) != example.id:
        view.note("word", "")  # it was one of another answer
    st.session_state[_LAST] = example.id
    draw_words(view, words, example)
    return example.id


def _telling(words: KeptWords, names: list[str]) -> str:
    """The first answer in which an object is made up, best with patches; else the first."""
    wrong = [words.of(name)[lambda mine: mine["group"] == HALLUCINATED] for name in names]
    seen = [
        name
        for name, made_up in zip(names, wrong, strict=True)
        if (made_up["query_first"] >= 0).any()
    ]
    said = [name for name, made_up in zip(names, wrong, strict=True) if len(made_up)]
    return (seen or said or names)[0]


def _depth(view: View) -> None:
    heads = only_measures(view, (_FLOW, _SHARE, _MDI))
    flow, dominance = st.columns(2, gap="medium")
    try:
        depth = over_depth(heads, TOWER)
    except ValueError as error:
        tell(str(error), f"{_command(view)} --measures {_FLOW},{_SHARE},{_MDI} --out runs/flow")
        return
    with flow:
        n = int(heads.select(measure=_FLOW, tower=TOWER).frame["n"].max())
        draw(
            modality_flow_by_layer(depth, n),
            "vision-flow",
            "High: much of the weight of the positions that predict the answer lies there; the "
            "lines of a layer sum to 1 where every example has all parts. After DyVTE (arXiv "
            "2411.19628); see the docs of modality_flow.",
            depth.layers,
            wide=True,
        )
    with dominance:
        try:
            figure = dominance_by_layer(heads, depth)
        except ValueError as error:
            tell(str(error), f"{_command(view)} --measures {_MDI} --out runs/mdi")
            return
        draw(
            figure,
            "vision-mdi",
            "Weight per text key over weight per image key, at the positions that predict the "
            "answer. Above 1 a token of text gets more than a patch, below 1 less. When Language "
            "Overrules, 2025 (arXiv 2508.10552).",
            lambda: heads.select(measure=_MDI, tower=TOWER).frame,
            wide=True,
        )


def _compared(view: View) -> None:
    assert view.item is not None
    tokens = section_table(view.item, SECTION, "tokens")
    groups = section_table(view.item, SECTION, "token_groups")
    if tokens is None or groups is None:
        tell(
            "Nothing says which words are made up: it takes `vhd` on data that names the objects "
            "of each image.",
            "headscope score shapes-llava --data scenes-broken --measures vhd --out runs/vhd",
        )
        return
    spread, difference = st.columns(2, gap="medium")
    with spread:
        try:
            figure = t_vhd_by_group(tokens)
        except ValueError as error:
            tell(str(error))
        else:
            draw(
                figure,
                "vision-t-vhd",
                "High T-VHD: heads depend on the image at the word. Made-up objects are said with "
                "less of it (He et al. 2024, arXiv 2412.13949).",
                tokens,
                wide=True,
            )
    with difference:
        try:
            figure = t_vhd_compared(groups)
        except (ValueError, KeyError) as error:
            tell(str(error))
            return
        draw(
            figure,
            "vision-groups",
            "Left of 0: T-VHD is lower where the object is made up. Compared with the true "
            "mentions that are alike in text, kind or place, too, as later words have more text "
            "before them. Whole texts: with a made-up object against those without.",
            groups,
            wide=True,
        )


def _command(view: View) -> str:
    item = view.item
    return f"headscope score {item.model} --data {item.data}" if item else "headscope score MODEL"


PAGE = Page("vision", "Vision", "What an answer takes from its image, and what it makes up.", show)
