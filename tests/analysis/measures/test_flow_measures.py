"""Modality flow, dominance, image maps, gaze and boxes: one prompt worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic_calls import null, random_call, scored, text_tokens, value, whole_call
from torch import Tensor

from analysis.measures import select_measures
from probes.attention_call import AttentionCall
from probes.inputs import Batch, Example
from probes.moment import Moment
from probes.tokens.map import ROLES, TokenMap, TowerTokens, blank_tokens

# <bos> user | three patches | the cat assistant | a cat
TEXT = ("<bos>", "user", "<image>", "<image>", "<image>", "the", "cat", "assistant", "a", "cat")
ROLE = ("bos", "text", "image", "image", "image", "text", "text", "text", "text", "text")
ROWS = {
    4: [0.2, 0.2, 0.2, 0.2, 0.2],
    5: [0.1, 0.1, 0.3, 0.1, 0.1, 0.3],
    6: [0.1, 0.0, 0.2, 0.3, 0.1, 0.1, 0.2],
    7: [0.30, 0.05, 0.10, 0.05, 0.15, 0.05, 0.20, 0.10],
    8: [0.20, 0.10, 0.05, 0.05, 0.10, 0.10, 0.10, 0.05, 0.25],
    9: [0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05],
}
EXAMPLE = Example(
    "0",
    image="a.png",
    question="the cat",
    answer="a cat",
    objects=("cat",),
    boxes=((6.0, 0.0, 12.0, 4.0),),
)


def prompt(**changes: Any) -> tuple[AttentionCall, TowerTokens]:
    """One causal call over `TEXT`; rows that are not in `ROWS` look at all alike."""
    tokens = blank_tokens("language", [10], [0], "text")
    box = torch.full((10, 4), torch.nan)
    row, column = tokens.row.clone(), tokens.column.clone()
    for patch in range(3):
        box[2 + patch] = torch.tensor([4.0 * patch, 0.0, 4.0 * patch + 4, 4.0])
        row[2 + patch], column[2 + patch] = 0, patch
    image = torch.where(row >= 0, 0, -1)
    role = torch.tensor([ROLES.index(name) for name in ROLE])
    tokens = replace(
        tokens, role=role, box=box, row=row, column=column, image=image, tile=image, text=TEXT
    )
    pattern = torch.ones(10, 10).tril() / torch.arange(1, 11)[:, None]
    for query, weights in ROWS.items():
        pattern[query, : len(weights)] = torch.tensor(weights)
    example = replace(EXAMPLE, **changes)
    ids = torch.zeros(1, 10, dtype=torch.long)
    starts = (-1,) if example.answer is None else (8,)
    batch = Batch({"input_ids": ids}, TokenMap({"language": tokens}), (example,), starts)
    call = whole_call(pattern[None, None], tokens)
    call.moment = Moment(batch, batch.tokens)
    return call, tokens


DOMINANCE = {
    # Weight on T and number of text keys, over the two queries that predict the answer.
    "T=all": (1.50, 11),
    "T=-bos": (1.00, 9),
    "T=-template": (1.20, 7),
    "T=-output": (1.25, 10),
    "T=question": (0.45, 4),
}


@pytest.mark.parametrize("variant", DOMINANCE)
def test_dominance_by_hand(variant: str) -> None:
    call, tokens = prompt()
    names = ["modality_dominance", "attention_efficiency", "text_share"]
    scores = scored(call, tokens, measures=names)
    mass, keys = DOMINANCE[variant]
    share, of_keys = mass / (mass + 0.5), keys / (keys + 6)
    mdi = (mass / keys) / (0.5 / 6)
    assert value(scores, "modality_dominance", variant) == pytest.approx(mdi, abs=1e-6)
    aei = value(scores, "attention_efficiency", variant)
    assert aei == pytest.approx(share / of_keys, abs=1e-6)
    assert aei == pytest.approx(mdi / (1 + of_keys * (mdi - 1)), abs=1e-6)
    assert value(scores, "text_share", variant) == pytest.approx(share, abs=1e-6)
    assert null(scores, "text_share", variant) == pytest.approx(of_keys, abs=1e-9)


def test_the_null_of_dominance_is_balance_but_for_the_length_of_the_answer() -> None:
    call, tokens = prompt()
    scores = scored(call, tokens, measures="modality_dominance")
    assert null(scores, "modality_dominance", "T=-output") == pytest.approx(1.0, abs=1e-6)
    # Later queries read more keys, each with less: (5/8 + 6/9) / 11 over (3/8 + 3/9) / 6.
    expected = ((5 / 8 + 6 / 9) / 11) / ((3 / 8 + 3 / 9) / 6)
    assert null(scores, "modality_dominance", "T=all") == pytest.approx(expected, abs=1e-6)


def test_without_an_answer_the_text_behind_the_image_is_asked() -> None:
    call, tokens = prompt(answer=None, objects=(), boxes=())
    scores = scored(call, tokens, measures=["modality_dominance", "modality_flow", "text_share"])
    # All five positions from "the" on are prompt; the last two words are part of it.
    mass = sum(sum(weights) - sum(weights[2:5]) for q, weights in ROWS.items() if q > 4)
    seen = sum(sum(weights[2:5]) for q, weights in ROWS.items() if q > 4)
    share = mass / (mass + seen)
    assert value(scores, "text_share", "T=all") == pytest.approx(share, abs=1e-6)
    variants = {column.variant for column in scores.columns if column.measure == "modality_flow"}
    assert "output->image" not in variants and "after->image" in variants


def test_flow_by_hand() -> None:
    call, tokens = prompt()
    scores = scored(call, tokens, measures=["modality_flow", "text_shift"])
    expected = {
        "output->image": 0.25,
        "output->before": 0.325,
        "output->after": 0.3,
        "output->output": 0.125,
        "after->image": (0.5 + 0.6 + 0.3) / 3,
        "after->before": (0.2 + 0.1 + 0.35) / 3,
        "after->after": (0.3 + 0.3 + 0.35) / 3,
        "T->V": (0.5 + 0.6 + 0.3 + 0.2 + 0.4) / 5,
        "T->T": 1 - (0.5 + 0.6 + 0.3 + 0.2 + 0.4) / 5,
        "V->T": (2 / 3 + 2 / 4 + 2 / 5) / 3,
        "V->V": 1 - (2 / 3 + 2 / 4 + 2 / 5) / 3,
    }
    found = {c.variant: float(v) for c, v in zip(scores.columns, scores.values, strict=True)}
    assert value(scores, "text_shift") == pytest.approx(0.6 / 1.25, abs=1e-6)
    assert value(scores, "text_shift", "no_bos") == pytest.approx(0.6 / 0.75, abs=1e-6)
    del found[""], found["no_bos"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_maps_of_the_deciding_query_by_hand() -> None:
    call, tokens = prompt()
    names = ["image_concentration", "raster_shift", "spatial_entropy"]
    scores = scored(call, tokens, measures=names)
    # Row 7 has 0.15, 0.10, 0.05 of 0.3 on the image.
    assert value(scores, "image_concentration", "top=10%") == pytest.approx(0.15, abs=1e-6)
    expected = (0.15 + 0.5 * 0.10) / 0.3
    assert value(scores, "image_concentration", "top=50%") == pytest.approx(expected, abs=1e-6)
    assert null(scores, "image_concentration", "top=50%") == pytest.approx(0.5, abs=1e-6)
    last = (0.05 * 0.5 + 0.15) / 0.3
    assert value(scores, "raster_shift", "last") == pytest.approx(last, abs=1e-6)
    columns = [sum(weights[k] for q, weights in ROWS.items() if q > 4) for k in (2, 3, 4)]
    text = (columns[1] * 0.5 + columns[2]) / sum(columns)
    assert value(scores, "raster_shift", "text") == pytest.approx(text, abs=1e-6)
    assert null(scores, "raster_shift", "text") == pytest.approx(0.5, abs=1e-6)
    # The outer two patches do not touch; only the right one is above the mean.
    assert value(scores, "spatial_entropy") == pytest.approx(0.0, abs=1e-9)
    curve = scores.curves["language", 0, "image_concentration"]
    assert curve.value[0, [0, 10, 20]].tolist() == pytest.approx([0.0, expected, 1.0], abs=1e-6)


def test_gaze_by_hand() -> None:
    call, tokens = prompt()
    scores = scored(call, tokens, measures="gaze_shift")
    # "cat" draws 0.2 anew to the middle patch; "the" 0.1 to the left one, where 0.2 was already.
    assert value(scores, "gaze_shift", "words=content") == pytest.approx(0.2, abs=1e-6)
    assert value(scores, "gaze_shift", "words=function") == pytest.approx(0.1, abs=1e-6)
    assert null(scores, "gaze_shift", "words=content") == 0


def test_boxes_by_hand() -> None:
    call, tokens = prompt()
    names = ["box_mass", "box_share", "box_overlap", "pointing_game"]
    scores = scored(call, tokens, measures=names)
    # The box covers half of the middle patch and all of the right one; row 8 predicts "cat".
    for word in ("first", "last"):
        assert value(scores, "box_mass", word) == pytest.approx(0.025 + 0.10, abs=1e-6)
        assert value(scores, "box_share", word) == pytest.approx(0.125 / 0.2, abs=1e-6)
        assert value(scores, "pointing_game", word) == 1
        for threshold in ("best", "area"):
            variant = f"{word},threshold={threshold}"
            assert value(scores, "box_overlap", variant) == pytest.approx(16 / 24, abs=1e-6)
    assert value(scores, "box_mass", "read") == pytest.approx(0.05 + 0.1, abs=1e-6)
    assert value(scores, "pointing_game", "read") == 0
    assert value(scores, "box_overlap", "read,threshold=area") == 0
    assert value(scores, "box_overlap", "read,threshold=best") == pytest.approx(24 / 48, abs=1e-6)
    assert null(scores, "box_mass", "last") == pytest.approx(1.5 / 9, abs=1e-6)
    assert null(scores, "box_share", "last") == pytest.approx(1.5 / 3, abs=1e-6)
    assert null(scores, "pointing_game", "last") == pytest.approx(2 / 3, abs=1e-6)


def test_an_object_that_is_not_there_has_no_box() -> None:
    call, tokens = prompt(objects=("dog",))
    scores = scored(call, tokens, measures="box_mass")
    assert not scores.columns
    call, tokens = prompt(objects=("dog", "cat"), boxes=((0, 0, 1, 1), (0.0, 0.0, 2.0, 4.0)))
    scores = scored(call, tokens, measures="box_mass")
    assert value(scores, "box_mass", "last") == pytest.approx(0.025, abs=1e-6)


def reasons(call: AttentionCall, tokens: TowerTokens, names: list[str]) -> dict[str, str]:
    scores = scored(call, tokens, measures=names)
    return {measure: why for (_, measure), why in scores.reasons.items()}


FLOW = ["modality_dominance", "attention_efficiency", "text_share", "modality_flow", "text_shift"]
MAPS = ["image_concentration", "raster_shift", "spatial_entropy"]
BOXES = ["box_mass", "box_share", "box_overlap", "pointing_game"]


def test_a_language_model_gets_one_sentence_for_each() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5]])
    names = [*FLOW, "gaze_shift", *MAPS, *BOXES]
    found = reasons(random_call(tokens), tokens, names)
    assert set(found) == set(names)
    for name in (*FLOW, "gaze_shift"):
        assert found[name] == (
            f"{name} weighs an image against the text beside it, and language has no image "
            "positions in these inputs, so it is not measured there."
        )
    for name in (*MAPS, *BOXES):
        assert found[name] == (
            f"{name} looks at what is read of an image, and language reads none in these inputs, "
            "so it is not measured there."
        )


def test_a_vision_tower_gets_one_sentence_for_what_needs_text() -> None:
    tokens = blank_tokens("vision", [6], [0], "image")
    call = random_call(tokens, causal=False)
    found = reasons(call, tokens, [*FLOW, *MAPS, *BOXES])
    assert "vision has no text in these inputs" in found["modality_flow"]
    assert "CLS or where an answer begins, and vision has neither" in found["raster_shift"]
    role = tokens.role.clone()
    role[0] = ROLES.index("cls")
    with_cls = replace(tokens, role=role)
    found = reasons(call, with_cls, [*MAPS, *BOXES])
    assert set(found) == {"spatial_entropy", *BOXES}
    assert "that vision reads have no place" in found["spatial_entropy"]
    assert "vision writes nothing" in found["box_mass"]


def test_examples_without_boxes_are_told_what_is_missing() -> None:
    call, tokens = prompt(boxes=())
    found = reasons(call, tokens, ["box_mass", "pointing_game"])
    assert found["pointing_game"] == (
        "pointing_game needs examples of one image with `objects` and a box for each in `boxes`, "
        "and there are none, so it is not measured."
    )


def test_all_leaves_out_only_what_is_costly() -> None:
    names = {measure.name for measure in select_measures("all")}
    assert {*FLOW, "gaze_shift", *BOXES} <= names
    assert "spatial_entropy" not in names


def test_a_map_in_two_places_has_the_entropy_of_a_coin() -> None:
    call, tokens = prompt()
    assert isinstance(call.whole, Tensor)
    call.whole[0, 0, 7, 2:5] = torch.tensor([0.14, 0.02, 0.14])
    scores = scored(call, tokens, measures="spatial_entropy")
    assert value(scores, "spatial_entropy") == pytest.approx(0.6931472, abs=1e-6)
