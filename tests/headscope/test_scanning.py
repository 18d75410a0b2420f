"""The public `scan`: its forms of inputs, what it says of them, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import headscope as hs
from analysis.importance.scans.two_sets import halves
from headscope.plan import Options
from headscope.scan_run import read_scan, scan_run
from headscope.scanning import read_set
from probes.readers import read_examples

FEW: dict[str, Any] = {"limit": 10, "top": (2,), "randoms": 3, "permutations": 99, "replicates": 20}


def test_bundled_sets_examples_and_batches_give_the_same(subject: Any) -> None:
    found = hs.scan(subject, "repeats", "unrepeated", **FEW)
    assert found.examples == (10, 10) and found.how.where == "answer"
    assert found.heads["layer"].head(5).tolist() == [1] * 5
    given = [list(read_examples(name, limit=10)) for name in ("repeats", "unrepeated")]
    again = hs.scan(subject, *given, batch_size=3, **FEW)
    batches = [[subject.prepare(examples=e[:4]), subject.prepare(examples=e[4:])] for e in given]
    third = hs.scan(subject, *batches, **FEW)
    for other in (again, third):
        order = ["layer", "head"]
        assert other.heads.sort_values(order)["effect_size"].tolist() == pytest.approx(
            found.heads.sort_values(order)["effect_size"].tolist(), rel=1e-3
        )
        assert other.confirmation["heads"].tolist() == found.confirmation["heads"].tolist()
        assert other.confirmation["value"].tolist() == pytest.approx(
            found.confirmation["value"].tolist(), abs=1e-4
        )


def test_lists_of_texts(subject: Any) -> None:
    texts = [f"t0{n} t1{n} t2{n} t0{n} t1{n}" for n in range(5)]
    others = [f"t0{n} t1{n} t2{n} t3{n} t4{n}" for n in range(5)]
    found = hs.scan(subject, texts, others, where="last", last=1, paired=True, **FEW)
    assert found.examples == (5, 5) and found.splits == 32 and found.variant == "last=1, paired"


def test_a_measure_by_name(subject: Any) -> None:
    found = hs.scan(subject, "repeats", "unrepeated", "induction", towers="language", **FEW)
    assert found.heads.iloc[0]["effect_size"] > 3
    assert found.table().measures == ["difference_induction"]


def test_batches_of_a_set_lie_in_one_half(subject: Any) -> None:
    """So that one half can be run without the other."""
    from analysis.importance.scans.options import ScanOptions

    made = read_set(subject, "repeats", "behaviour", ScanOptions(), Options(limit=13, batch_size=5))
    ids = [example.id for example in made.examples]
    first = halves([f"behaviour:{name}" for name in ids], 0)
    chosen = {name for name, mine in zip(ids, first, strict=True) if mine}
    seen = [[example.id in chosen for example in batch.examples] for batch in made()]
    assert [len(set(one)) for one in seen] == [1, 1, 1, 1]
    assert sorted(map(len, seen)) == [1, 2, 5, 5]


def test_a_scan_is_read_back_from_its_run(subject: Any, tmp_path: Path) -> None:
    from analysis.importance.scans.options import ScanOptions

    lines = [
        {"id": str(n), "text": f"t0{n} t1{n} t2{n}", "answer": f"t0{n} t1{n}"} for n in range(6)
    ]
    lines.append({"id": "long", "text": "t01 " * 200, "answer": "t01"})
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(map(json.dumps, lines)))
    how = ScanOptions(top=(1, 2), randoms=2, permutations=99, replicates=20)
    options = Options(limit=8, seed=3)
    told: list[tuple[int, int, int]] = []
    run = scan_run(
        subject,
        str(mine),
        "unrepeated",
        tmp_path / "run",
        how,
        options,
        lambda at: told.append((at.done, at.total, at.skipped)),
    )
    assert run.finished and run.altered() == []
    assert [item["id"] for item in run.skipped] == ["behaviour:long"]
    assert "at most 96" in run.skipped[0]["reason"]
    assert run.plan["control"]["name"] == "unrepeated" and run.plan["control"]["n"] == 8
    assert told[-1][0] == told[-1][1] and (6, 7, 1) in told
    found = read_scan(run.sections["scan"])
    fresh = hs.scan(
        subject, mine, "unrepeated", limit=8, seed=3, top=(1, 2), randoms=2, permutations=99,
        replicates=20,
    )  # fmt: skip
    for name in ("how", "towers", "examples", "splits", "null_largest", "lengths", "there_are"):
        assert getattr(found, name) == getattr(fresh, name), name
    assert repr(found) == repr(fresh)
    assert found.heads.equals(fresh.heads) and found.confirmation.equals(fresh.confirmation)
    lines_of_run = run.heads.lines("difference_activity")
    assert lines_of_run["inputs"].unique().tolist() == ["mine.jsonl against unrepeated"]


@pytest.mark.parametrize(
    ("behaviour", "control", "given", "sentence"),
    [
        ("repeats", "repeats", {}, "another set than the behaviour, both are 'repeats'"),
        (["t01 t02"] * 5, [], {}, "`control` must be data, .* got an empty one"),
        (["t01 t02"] * 5, [3], {}, "`control` must be data, .* got one of int"),
        (["t01 t02"] * 5, ["t03 t04"], {}, "at least 2 examples to be compared, got 5 and 1"),
        (["t01 t02"] * 5, ["t03 t04"] * 3, {}, "at least 4 examples, .* got 5 and 3"),
        (["t01 t02"] * 5, ["t03"] * 4, {"paired": True}, "'4' stands in the behaviour only"),
        (["t01 t02"] * 5, ["t03 " * 99] * 4, {}, "None of the examples of the control can be read"),
        ("repeats", "unrepeated", {"measure": "entrop"}, "Did you mean entropy.*Or activity"),
        ("repeats", "unrepeated", {"measure": "importance"}, "one streaming measure, got 'import"),
        ("repeats", "unrepeated", {"ablation": "x"}, "An ablation must be one of zero"),
        ("repeats", "unrepeated", {"effect": "flop"}, "An effect must be one of"),
        ("repeats", "unrepeated", {"towers": "vision"}, "among language, got 'vision'"),
        ("repeats", "digits", {}, "None of the 100 examples of 'digits' fits a language model"),
    ],
)
def test_what_cannot_be_scanned_is_said(
    subject: Any, behaviour: Any, control: Any, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        hs.scan(subject, behaviour, control, **FEW | given)
    assert "\n" not in str(caught.value)


def test_a_model_without_attention_is_refused() -> None:
    from probes.subject import Subject
    from tests import tiny_models as tiny

    subject = Subject(tiny.resnet(), None)
    with pytest.raises(ValueError, match="has no softmax attention between tokens"):
        hs.scan(subject, ["a"] * 4, ["b"] * 4)
