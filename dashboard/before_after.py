"""The part of a page that shows what edits change in answers: words, and rates with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from analysis.hallucination.word_changes import SaidWord, word_changes
from analysis.run_files import RunError
from dashboard.components.answer_words import Piece, answer_words
from dashboard.drawn import draw, escaped
from dashboard.empty import tell
from dashboard.evaluation_figures import shares_of
from dashboard.figures import edit_effects
from dashboard.guarded import fragment
from dashboard.opened_runs import item_table
from dashboard.shelf import EVALUATION, Item
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd

_BASELINE, _EDIT = "baseline", "edit"
_WIDE = 288


def evaluations_of(view: View) -> list[Item]:
    """Finished evaluations of the same model, newest first."""
    assert view.item is not None
    return [
        item
        for item in view.shelf.of(EVALUATION)
        if item.finished and not item.problem and item.model == view.item.model
    ]


def draw_before_after(view: View, example: str) -> None:
    """Answers before and after an edit, and the rates of the whole evaluation.

    Args:
        example: shown first, if the evaluation asked about it.
    """
    st.subheader("Before and after an edit", anchor=False)
    known = evaluations_of(view)
    if not known:
        model = view.item.model if view.item else "MODEL"
        tell(
            f"No finished evaluation of {model} lies beside this run. Make one in the same folder:",
            f"headscope evaluate {model} --edit vhr:alpha=2 --control 3 --out runs/evaluation",
        )
        return
    _fragment(view, known, example)


@fragment
def _fragment(view: View, known: list[Item], example: str) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom")
    with row:
        item = _choose("evaluation", {one.name: one for one in known})
    try:
        table, answers = item_table(item, "evaluation"), item_table(item, "answers")
        edits = list(dict.fromkeys(table["edit"][table["kind"] == _EDIT]))
        before = answers[answers["kind"] == _BASELINE].set_index("id")
    except (RunError, KeyError) as error:
        tell(str(error))
        return
    if not edits or before.empty:
        tell("This evaluation has no edit to be compared with the plain model. Add `--edit`.")
        return
    with row:
        edit = _choose("edit", {name: name for name in edits})
        ids = {str(name): str(name) for name in before.index}
        asked = _choose("asked", ids, example, "picture")
    after = answers[(answers["kind"] == _EDIT) & (answers["edit"] == edit)].set_index("id")
    said, rates = st.columns([2, 3], gap="medium")
    with said:
        if asked in after.index:
            _draw_answers(before.loc[asked], after.loc[asked], edit)
        else:
            tell("This picture was not asked about with the edit.")
    with rates:
        try:
            figure = edit_effects(table, edit)
        except ValueError as error:
            tell(str(error))
            return
        draw(
            figure,
            "vision-edit",
            "CHAIR_S: share of answers that name an object that is not there, CHAIR_I: share of "
            "mentions; lower is better, recall tells what it costs. An edit does something of its "
            "own where it goes beyond random heads that move z as far. Rohrbach et al. 2018 "
            "(arXiv 1809.02156), Li et al. 2023 (POPE, arXiv 2305.10355).",
            shares_of(table, edit),
            wide=True,
        )


def _draw_answers(before: pd.Series, after: pd.Series, edit: str) -> None:
    if isinstance(before.get("question"), str):
        st.markdown(escaped(before["question"]))
    was, now = str(before["answer"]), str(after["answer"])
    sides = word_changes(was, now, _spans(before), _spans(after))
    for key, title, words, line in (
        ("before", "Without an edit", sides[0], before),
        ("after", f"With {edit}", sides[1], after),
    ):
        st.markdown(f"**{escaped(title)}**")
        answer_words(f"vision-{key}", [_piece(word) for word in words], title)
        st.markdown(escaped(_verdict(line)))
    with st.container(key="caption-vision-changed"):
        st.markdown(
            "On a ground: words that the other answer does not have there. Underlined: an object "
            "that is not in the image."
        )


def _piece(word: SaidWord) -> Piece:
    about = [
        name
        for name, true in (("changed", word.changed), ("an object that is not there", word.wrong))
        if true
    ]
    return Piece(text=word.text, wrong=word.wrong, changed=word.changed, about=", ".join(about))


def _spans(line: pd.Series) -> list[list[int]]:
    """Where objects are named that are not there; older evaluations do not say."""
    return [[int(end) for end in span] for span in _listed(line.get("hallucinated_at"))]


def _verdict(line: pd.Series) -> str:
    if "hallucinated" in line:
        wrong = [str(name) for name in _listed(line["hallucinated"])]
        return f"Not there: {', '.join(wrong)}." if wrong else "All that is named is there."
    if "yes" in line:
        return "Right." if bool(line["yes"]) == bool(line["there"]) else "Wrong."
    return ""


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else []


def _choose(name: str, options: dict[str, Any], default: str = "", label: str = "") -> Any:
    """One of some, in a drop-down of this part; kept in the address."""
    names = list(options)
    if len(names) == 1:
        return options[names[0]]
    index = names.index(default) if default in options else 0
    return options[
        st.selectbox(label or name, names, index=index, key=name, bind="query-params", width=_WIDE)
    ]
