"""What was found, in words: lines, sentences, and which positions of an example are at a sink."""

import math

import pandas as pd
import pytest

from analysis.sinks.marked import marked_tokens
from analysis.sinks.said import sink_lines, sink_sentences


def _found(**more):
    line = {
        "tower": "language", "layer": 1, "kind": "text", "position": 0, "role": "bos",
        "token": "<bos>", "row": -1, "column": -1, "share": 1.0, "score": 10.4, "received": 0.4,
        "received_null": 0.08,
    }  # fmt: skip
    return line | more


@pytest.fixture
def found():
    """BOS in layers 1 and 2, a patch in half of the examples, a word in fewer."""
    return pd.DataFrame(
        [
            _found(),
            _found(layer=2, received=0.25, score=9.5),
            _found(kind="visual", position=3, role="image", token="<image>", row=0, column=1,
                   share=0.5, received=math.nan, received_null=math.nan),
            _found(position=5, role="text", token="red", share=0.25),
        ]
    )  # fmt: skip


def test_lines_say_where_it_is_strongest_and_leave_out_what_is_seldom(found):
    assert sink_lines(found) == [
        ["<bos>, position 0", "text", "1 to 2", "100 %", "9.50 to 10.4", "0.400 in layer 1",
         "0.0800"],
        ["patch row 0, column 1", "visual", "1", "50 %", "10.4", "–", "–"],
    ]  # fmt: skip
    assert sink_lines(found[:0]) == []


def test_sentences_of_tables_that_are_not_there_are_left_out(found):
    ranking = pd.DataFrame(
        {"dimension": [97, 41, 3], "chosen": [True, True, False], "tower": "language",
         "width": 136, "published": False, "backbone": ""}
    )  # fmt: skip
    heads = pd.DataFrame(columns=["tower", "measure", "variant"])
    assert sink_sentences({}, heads) == []
    (said,) = sink_sentences({"sink_dimensions": ranking}, heads)
    assert said == "Sinks of language are massive in dimensions 41, 97 of 136."


def test_a_position_is_marked_by_place_and_word(found):
    tokens = pd.DataFrame(
        [
            ("pad", "", 0, -1, -1),
            ("bos", "<bos>", 1, -1, -1),
            ("text", "red", 2, -1, -1),
            ("image", "<image>", 3, 0, 0),
            ("image", "<image>", 4, 0, 1),
            ("text", "blue", 5, -1, -1),
            ("text", "blue", 6, -1, -1),
        ],
        columns=["role", "text", "position", "row", "column"],
    ).assign(sequence=0)
    marked = marked_tokens(tokens, found[found["layer"] == 1])
    # Padding on the left: counted from BOS. Position 5 is "blue" here and "red" in the table.
    assert marked["position"].tolist() == [1, 2, 3, 4, 5, 6]
    assert marked["share"].tolist() == [1.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    assert marked["kind"].tolist() == ["text", "", "", "visual", "", ""]
    assert marked["text"].tolist() == tokens["text"].tolist()[1:]
