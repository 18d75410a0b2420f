"""Queries over a small table whose answers are read off by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from analysis.finder import QueryError
from analysis.head_table import HeadTable

NAN = float("nan")


def line(tower: str, layer: int, head: int, measure: str, value: float, **more: Any) -> dict:
    given = {"variant": "", "inputs": "words", "n": 7, "unit": "nats"} | more
    ends = {"ci_low": value - 0.5, "ci_high": value + 0.5, "null_low": 1.0, "null_high": 2.0}
    return {
        "tower": tower, "layer": layer, "head": head, "measure": measure, "value": value,
        **ends, **given,
    }  # fmt: skip


@pytest.fixture
def heads() -> HeadTable:
    """Two heads in each of two layers of `text`, one in `sight`; `vhd` of text only, once NaN."""
    lines = []
    for layer, head, entropy, vhd in ((0, 0, 1, 5), (0, 1, 2, 3), (1, 0, 3, NAN), (1, 1, 4, 1)):
        lines.append(line("text", layer, head, "entropy", entropy))
        lines.append(line("text", layer, head, "vhd", vhd))
        for name, value in (("k=1,eps=0.3", 10 * head), ("k=1,eps=0.1", layer)):
            lines.append(line("text", layer, head, "rate", value, variant=name, unit="counts"))
    lines.append(line("sight", 2, 0, "entropy", 2.5))
    return HeadTable(pd.DataFrame(lines))


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("entropy > 2", "text.L1H1 text.L1H0 sight.L2H0"),
        ("entropy >= 2 by entropy ascending", "text.L0H1 sight.L2H0 text.L1H0 text.L1H1"),
        ("vhd > entropy", "text.L0H0 text.L0H1"),
        ("not vhd > entropy", "text.L1H1"),
        ("not not vhd > entropy", "text.L0H0 text.L0H1"),
        ("entropy < 2 or entropy > 2 and vhd < 2", "text.L1H1 text.L0H0"),
        ("(entropy < 2 or entropy > 2) and vhd < 2", "text.L1H1"),
        ("1 < entropy < 4 and tower == text", "text.L1H0 text.L0H1"),
        ("entropy = 1 or tower != text by entropy", "sight.L2H0 text.L0H0"),
        ("rate > 5", "text.L0H1 text.L1H1"),
        ("rate[eps=0.1] != 0", "text.L1H0 text.L1H1"),
        ("rate[ eps=0.3 , k=1 ] > 5 and layer < 1", "text.L0H1"),
        ("layer >= 1 AND head < 1", "text.L1H0 sight.L2H0"),
        ("entropy.ci_low > entropy.null_high", "text.L1H1 text.L1H0"),
        ("entropy@words > 3", "text.L1H1"),
        ("entropy > 100", ""),
        ("by vhd", "text.L0H0 text.L0H1 text.L1H1 text.L1H0 sight.L2H0"),
        # What decides is known, whatever is missing beside it.
        ("vhd > 2 or entropy > 2.75", "text.L0H0 text.L0H1 text.L1H1 text.L1H0"),
        ("entropy > 2 and not (vhd > 2)", "text.L1H1"),
    ],
)
def test_a_query_finds(heads: HeadTable, query: str, names: str) -> None:
    assert heads.find(query).names == names.split()


def test_found_heads_have_the_named_values(heads: HeadTable) -> None:
    found = heads.find("entropy >= 3 and rate[eps=0.1] == 1")
    assert found.ranked_by == "entropy"
    assert list(found.frame) == ["tower", "layer", "head", "entropy", "rate[k=1,eps=0.1]"]
    assert found.frame["entropy"].tolist() == [4, 3]
    assert [one.unit for one in found.quantities] == ["nats", "counts"]
    assert found.lines("entropy")["ci_low"].tolist() == [3.5, 2.5]
    with pytest.raises(ValueError, match="`label` must be one of entropy, rate"):
        found.lines("vhd")


def test_what_hangs_on_a_missing_value_is_counted(heads: HeadTable) -> None:
    found = heads.find("vhd < 100")
    assert (found.asked, found.undecided, len(found)) == (5, 2, 3)
    assert (heads.find("vhd < 100 or entropy > 0").undecided) == 0


def test_ranking_is_said_by_argument_or_by_the_query(heads: HeadTable) -> None:
    assert heads.find("vhd > 0", by="entropy").names[0] == "text.L1H1"
    assert heads.find("vhd > 0", by="entropy", ascending=True).names[0] == "text.L0H0"
    assert heads.find("vhd > 0 by vhd", by="entropy").names[0] == "text.L0H0"
    assert math.isnan(heads.find("entropy > 0 by vhd ascending").frame["vhd"].iloc[-1])


def test_several_inputs_must_be_told_apart(heads: HeadTable) -> None:
    other = HeadTable(pd.DataFrame([line("text", 0, 0, "entropy", 9, inputs="random words")]))
    both = heads.merge(other)
    with pytest.raises(QueryError, match="entropy@words, entropy@`random words`"):
        both.find("entropy > 2")
    assert both.find("entropy@`random words` > 2").names == ["text.L0H0"]
    assert both.find("entropy@words > 3.5").names == ["text.L1H1"]
    assert both.find("vhd > 4").names == ["text.L0H0"]


@pytest.mark.parametrize("name", ["layer", "and", "two words", "T->V", "tower"])
def test_any_name_can_be_written_in_backquotes(name: str) -> None:
    heads = HeadTable(pd.DataFrame([line("t w", 0, 1, name, 3.0)]))
    found = heads.find(f"`{name}` > 1 and tower == `t w`")
    assert found.names == ["t w.L0H1"]
    assert heads.find(f"{found.ranked_by} > 1").names == found.names


@pytest.mark.parametrize(
    ("query", "sentence", "place"),
    [
        ("entropi > 2", r"`entropi` \(character 1\) is no measure of this table. Did you mean "
         r"entropy\?", 0),
        ("entropy > 2 and rat < 1", r"`rat` \(character 17\).*Did you mean rate", 16),
        ("zzz > 2", "Choose one of: entropy, vhd, rate, layer, head, tower.", 0),
        ("rate[eps=0.2] > 1", r"is no variant of `rate`. Did you mean k=1,eps=0.3 or "
         "k=1,eps=0.1", 0),
        ("vhd[eps=0.2] > 1", r"`vhd` \(character 1\) has no variants", 0),
        ("tower == txt", r"`txt` \(character 10\) is no tower of this table. Did you mean text", 9),
        ("entropy@wrds > 1", "is no input of `entropy`. Did you mean words", 0),
        ("entropy", r"After `entropy` .* must stand a relation .*, got the end.", 7),
        ("entropy > ", "must stand a number or the name of a measure, got the end", 10),
        ("entropy > 2 2", "must stand `and`, `or` or `by`, got `2` .character 13", 12),
        ("(entropy > 2", r"must stand `\)` for the `\(` of character 1", 12),
        ("entropy > 2)", r"must stand `and`, `or` or `by`, got `\)`", 11),
        ("entropy + 1 > 2", "the finder compares, it does not calculate", 8),
        ("entropy > 2 && vhd > 1", "Write `and`, `or`, `not`", 12),
        ("entropy[ > 2", r"must be closed by `\]`", 7),
        ("2 > 1", "must name a measure", 0),
        ("entropy > 1e999", "must be a finite number", 10),
        ("tower > 3", "must stand `==` or `!=`", 6),
        ("by tower", "must be compared with a tower's name", 3),
        ("entropy.size > 3", "must stand one of value, ci_low", 8),
        ("__import__('os')", "has no meaning here|must stand a relation", 11),
        ("", "must hold a condition", 0),
        ("(" * 51 + "entropy > 2", "nested at most 50 deep", 50),
        ("not " * 600, "at most 2,000 characters", 2000),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(
    heads: HeadTable, query: str, sentence: str, place: int
) -> None:
    with pytest.raises(QueryError, match=sentence) as caught:
        heads.find(query)
    assert caught.value.place == place
