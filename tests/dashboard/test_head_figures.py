"""Strips of scores and the matrix of a pattern: the numbers that stand in them."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from analysis.kept_patterns import HeadPattern
from dashboard.exemplar_words import event_table, of_head, pair_table
from dashboard.figures import head_strips, pattern_matrix
from dashboard.head_strips import lines_by_measure
from probes.heads import Head

HEAD = Head("language", 0, 1)
NAN = float("nan")


@pytest.fixture
def lines() -> dict:
    entropy = [(1.0, 0.5, 1.5), (2.0, 1.8, 2.2), (5.0, 4.0, 6.0)]
    rows = [
        ("language", 0, head, "entropy", "", "x", *value, 7, 3.0, 4.0, "nats")
        for head, value in enumerate(entropy)
    ]
    rows += [
        ("language", 0, head, "a<b>", "k=1", "x", value, NAN, NAN, 7, NAN, NAN, "share")
        for head, value in enumerate([0.25, NAN, 0.5])
    ]
    rows += [("vision", 0, 0, "entropy", "", "x", 9.0, NAN, NAN, 7, NAN, NAN, "nats")]
    columns = "tower layer head measure variant inputs value ci_low ci_high n null_low null_high"
    table = HeadTable(pd.DataFrame(rows, columns=[*columns.split(), "unit"]))
    return lines_by_measure(table, "language")


def test_a_strip_runs_from_the_least_to_the_largest_number(lines: dict) -> None:
    figure = head_strips(lines, HEAD, [("entropy", "")], "Scores")
    others, null, interval, value = figure.data
    # From 1 (another head) to 5 (another head): the value 2 lies at a quarter.
    assert list(others.customdata) == ["language.L0H0", "language.L0H2"]
    assert np.asarray(others.x).tolist() == [0.0, 1.0]
    assert list(null.x) == [0.5, 0.75]
    assert list(interval.x) == pytest.approx([0.2, 0.3])
    assert list(value.x) == [0.25] and list(value.customdata) == [str(HEAD)]
    assert "2.0 ± 0.2" in figure.layout.annotations[0].text
    assert "1.00 to 5.00" in figure.layout.annotations[0].text


def test_what_was_not_measured_has_no_mark(lines: dict) -> None:
    figure = head_strips(lines, HEAD, [("a<b>", "k=1"), ("entropy", "")], "Scores")
    assert "not measured" in figure.layout.annotations[0].text
    assert len(figure.data) == 4
    assert figure.layout.yaxis.ticktext[0].startswith("a&lt;b&gt;")


def test_a_measure_that_is_the_same_for_all_lies_in_the_middle(lines: dict) -> None:
    flat = lines["entropy", ""].assign(
        value=2.0, ci_low=NAN, ci_high=NAN, null_low=NAN, null_high=NAN
    )
    figure = head_strips({("entropy", ""): flat}, HEAD, [("entropy", "")], "Scores")
    assert np.asarray(figure.data[0].x).tolist() == [0.5, 0.5]
    assert list(figure.data[-1].x) == [0.5]


def test_names_that_are_not_there_are_a_sentence(lines: dict) -> None:
    with pytest.raises(ValueError, match="must name at least one"):
        head_strips(lines, HEAD, [], "Scores")
    with pytest.raises(ValueError, match="must be in the lines of language"):
        head_strips(lines, HEAD, [("nothing", "")], "Scores")


def test_the_matrix_shows_weights_and_marks_a_query() -> None:
    weight = np.array([[1, 0, 0], [0.25, 0.75, 0]], np.float16)
    pattern = HeadPattern(np.array([0, 2], np.int32), 3, "language", weight, None, True, "one")
    tokens = [["<s>", "bos"], ["patch row 1, column 2", "image"], ["cat", "text"]]
    figure = pattern_matrix(pattern, "t", tokens, tokens, query=2)
    cells = figure.data[0]
    assert np.asarray(cells.customdata).tolist() == weight.tolist()
    assert np.asarray(cells.z) ** 2 == pytest.approx(weight.astype(float))
    assert list(cells.y) == ["&lt;s&gt; · 0", "cat · 2"]
    assert cells.x[1] == "r1 c2 · 1"
    assert (cells.zmin, cells.zmax) == (0, 1)
    (frame,) = figure.layout.shapes
    assert (frame.y0, frame.y1) == (0.5, 1.5)


def test_a_long_pattern_is_pooled() -> None:
    count = 300
    weight = np.full((count, count), 1 / count, np.float16)
    pattern = HeadPattern(np.arange(count, dtype=np.int32), count, "v", weight, None, True, "one")
    tokens = [[str(n), "text"] for n in range(count)]
    cells = pattern_matrix(pattern, "t", tokens, tokens).data[0]
    assert np.asarray(cells.customdata).shape == (100, 100)
    assert cells.y[0] == "0–2" and cells.y[-1] == "297–299"
    assert np.asarray(cells.customdata).sum(1) == pytest.approx(1, abs=2e-3)


def test_exemplars_read_as_text() -> None:
    place = {
        "role": "text", "token": "cat", "before": "a big", "after": "sat", "row": -1, "column": -1,
    }  # fmt: skip
    patch = place | {"role": "image", "token": "<image>", "row": 2, "column": 3}
    shared = {"tower": "language", "layer": 0, "head": 1, "by": "weight", "example": "e"}
    lines = [
        shared | {"kind": "decile", "decile": 1, "weight": 0.1, "contribution": 1.0},
        shared | {"kind": "decile", "decile": 10, "weight": 0.9, "contribution": 2.0},
        shared | {"kind": "strongest", "decile": 0, "weight": 0.95, "contribution": 3.0},
        shared | {"kind": "strongest", "decile": 0, "weight": 0.5, "contribution": 3.0, "head": 2},
    ]
    for line in lines:
        line |= {f"query_{name}": value for name, value in place.items()}
        line |= {f"key_{name}": value for name, value in patch.items()}
    events = of_head(pd.DataFrame(lines), HEAD)
    table = event_table(events, "decile", "weight")
    assert table["tenth"].tolist() == ["10 of 10", "1 of 10"]
    assert table["weight"].tolist() == [0.9, 0.1]
    assert table["query"].tolist() == ["a big ⟦cat⟧ sat"] * 2
    assert table["reads"].tolist() == ["patch row 2, column 3"] * 2
    assert event_table(events, "strongest", "weight")["weight"].tolist() == [0.95]
    assert event_table(events[:0], "strongest", "weight").empty


def test_pairs_say_where_a_patch_lies() -> None:
    pairs = pd.DataFrame(
        {
            "query": ["<image>", "the"], "key": ["<image>", "<bos>"], "sink": [False, True],
            "row_offset": pd.array([-1, None], dtype="Int64"),
            "column_offset": pd.array([2, None], dtype="Int64"),
            "share": [0.25, 0.5], "lift": [1.5, 4.0], "queries": [5, 6],
        }
    )  # fmt: skip
    table = pair_table(pairs)
    assert table["key"].tolist() == ["<bos>", "<image> 1 up 2 right"]
    assert table["share"].tolist() == [0.5, 0.25]
