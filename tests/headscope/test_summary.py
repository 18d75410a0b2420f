"""Summaries: what a short table keeps, and numbers that fit their interval."""

import pandas as pd
import pytest

from analysis.head_table import HeadTable
from headscope.plan import default_folder, inputs_name
from headscope.summary import columns, heads_that_fit, shortened, summarise, tower_title


def _line(head, measure, variant, value, null, unit="share"):
    numbers = {"value": value, "ci_low": value - 0.02, "ci_high": value + 0.02, "n": 31}
    place = {"tower": "language", "layer": 2, "head": head, "inputs": "x"}
    names = {"measure": measure, "variant": variant, "unit": unit}
    return {**place, **names, **numbers, "null_low": null, "null_high": null + 0.02}


@pytest.fixture
def lines():
    rows = [_line(head, "sink", "k=1", 0.1 * head + 0.1, 0.05) for head in range(5)]
    rows += [_line(head, "sink", "any", 0.5, 0.05) for head in range(5)]
    rows += [_line(head, "role_mass", "bos->bos", 0.9, 0.9995) for head in range(5)]
    rows += [_line(head, "role_mass", "text->bos", 0.3, 0.2) for head in range(5)]
    rows += [_line(head, "role_mass", "text->text", 0.6, 0.4) for head in range(5)]
    for row in rows:
        row["null_high"] = min(row["null_high"], 1.0)
    return HeadTable(pd.DataFrame(rows))


def test_the_highest_heads_come_first_with_interval_and_null(lines):
    first = summarise(lines)["language"][0]
    assert first.cells() == [
        "sink k=1",
        "share",
        "0.0600",
        "0.300",
        "L2H4 0.50 ± 0.02",
        "L2H3 0.40 ± 0.02",
        "L2H2 0.30 ± 0.02",
    ]
    assert first.record()["top"][0]["name"] == "language.L2H4"


def test_a_short_summary_keeps_one_variant_but_every_role(lines):
    short = shortened(summarise(lines)["language"])
    assert [line.name for line in short] == [
        "sink k=1 (+1)",
        "role_mass text->bos",
        "role_mass text->text",
    ]
    assert short[1].cells(2)[4:] == ["all heads alike", ""]


def test_columns_fit_the_terminal(lines):
    rows = summarise(lines)["language"]
    assert [heads_that_fit(rows, width) for width in (20, 80, 100, 200)] == [1, 1, 2, 3]
    assert len(columns(2)) == len(rows[0].cells(2)) == 6


def test_titles_and_names(lines):
    assert tower_title(lines, "language") == "language: 3 layers, 5 heads, n = 31"
    assert inputs_name("hf:imdb:test") == "hf:imdb:test"
    assert inputs_name("/data/my photos/") == "my photos"
    name = default_folder("org/model-7b", "/data/my photos/").name
    assert name.startswith("model-7b-my-photos-")


@pytest.mark.parametrize(("null", "shown"), [(-4.8e-7, "0"), (3e-6, "3e-06"), (-0.02, "-0.0200")])
def test_rounding_around_a_null_of_zero_is_not_shown(null, shown):
    rows = [_line(head, "block", "", 0.1 * head, null, "cosine") for head in range(3)]
    for row in rows:
        row["null_high"] = null
    assert summarise(HeadTable(pd.DataFrame(rows)))["language"][0].cells()[2] == shown
