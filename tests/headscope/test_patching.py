"""The public `patch`: its forms of pairs, its three kinds of answer, its refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

import headscope as hs
from probes.inputs import Example
from probes.readers import read_examples

MEASURE = "patch_noising_logit_difference"
CLEAN = ["t05 t11 t23 t31 t05 t11", "t40 t02 t17 t40 t02"]
CORRUPTED = ["t05 t11 t29 t31 t05 t11", "t40 t02 t09 t40 t02"]


def test_a_bundled_set_gives_a_head_table(subject: Any) -> None:
    table = hs.patch(subject, "pairs-induction", limit=6, batch_size=4)
    assert isinstance(table, hs.HeadTable)
    assert table.measures == [MEASURE, f"{MEASURE}_share"]
    assert table.grid(MEASURE).shape == (2, 8)
    assert table.frame["inputs"].unique().tolist() == ["pairs-induction"]
    assert table.frame["null_low"].notna().all()
    assert table.grid(f"{MEASURE}_share").max() < 1
    again = hs.patch(subject, list(read_examples("pairs-induction"))[:6], batch_size=1, copies=3)
    assert again.frame["value"].tolist() == pytest.approx(table.frame["value"].tolist(), abs=1e-4)


def test_two_lists_of_texts_equal_examples_and_a_file(subject: Any, tmp_path: Any) -> None:
    words = {"correct": ["t23", "t17"], "wrong": ["t29", "t09"]}
    table = hs.patch(subject, (CLEAN, CORRUPTED), "L1", **words, null=False)
    assert len(table) == 2 * 8
    assert table.frame["value"].max() > 0.5
    lines = [
        {"id": str(i), "text": a, "corrupt": b, "correct": c, "wrong": d}
        for i, (a, b, c, d) in enumerate(zip(CLEAN, CORRUPTED, *words.values(), strict=True))
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    from_file = hs.patch(subject, path, "L1", null=False)
    from_examples = hs.patch(subject, [Example(**line) for line in lines], "L1", null=False)
    for other in (from_file, from_examples):
        assert other.frame["value"].tolist() == table.frame["value"].tolist()
    assert set(from_file.frame["inputs"]) == {"mine.jsonl"}


def test_one_head_position_by_position(subject: Any) -> None:
    """An induction head writes the answer where the answer is read, nowhere else."""
    frame = hs.patch(
        subject, (CLEAN, CORRUPTED), "L1H4", correct=["t23", "t17"], wrong=["t29", "t09"], at="each"
    )
    assert len(frame) == 7 + 6
    assert frame["text"].tolist()[:3] == ["<bos>", "t05", "t11"]
    last = frame.groupby("example")["position"].transform("max") == frame["position"]
    assert (frame.loc[last, "value"] > 0.2).all()
    assert frame.loc[~last, "value"].abs().max() < 1e-5


def test_paths(subject: Any) -> None:
    frame = hs.patch(
        subject,
        "pairs-induction",
        limit=4,
        senders=["L0H1", "L0H2"],
        receivers=["L1H4", "output"],
        via="key",
    )
    assert frame[["sender", "receiver", "via"]].to_numpy().tolist() == [
        ["language.L0H1", "output", "direct"],
        ["language.L0H1", "language.L1H4", "key"],
        ["language.L0H2", "output", "direct"],
        ["language.L0H2", "language.L1H4", "key"],
    ]
    assert (frame["n"] == 4).all()


def test_classes_and_scenes() -> None:
    vit = hs.load("shapes-vit")
    table = hs.patch(vit, "pairs-shapes", "L3", direction="denoising", limit=4)
    assert table.grid("patch_denoising_logit_difference").shape == (4, 6)
    assert table.lines("patch_denoising_logit_difference")["value"].abs().max() > 0.1
    with pytest.raises(ValueError, match="is not one of a sequence, not of vision"):
        hs.patch(vit, "pairs-shapes", at="answer", limit=4)
    llava = hs.load("shapes-llava")
    table = hs.patch(llava, "pairs-scenes", ["vision.L2", "language.L3"], limit=4)
    assert table.towers == ["vision", "language"]
    answer = hs.patch(llava, "pairs-scenes", at="answer", limit=2, null=False)
    assert answer.towers == ["language"]
    assert set(answer.frame["variant"]) == {"at=answer"}


@pytest.mark.parametrize(
    ("pairs", "given", "sentence"),
    [
        ((CLEAN, CORRUPTED), {}, "`correct` must be one word, or one for each of 2 texts, got 0"),
        ((CLEAN, CORRUPTED[:1]), {"correct": "a", "wrong": "b"}, "two lists of as many texts"),
        ((CLEAN[0], CORRUPTED[0]), {}, "`pairs` must be data, examples, or two lists of texts"),
        ("pairs-induction", {"correct": "t01"}, "must stand in the data, not beside it"),
        ("repeats", {}, "Patching must have pairs: examples with `corrupt`"),
        ("pairs-induction", {"direction": "both"}, "`direction` must be one of noising, denoising"),
        ("pairs-induction", {"at": "words"}, "`at` must be one of all, answer"),
        (
            (CLEAN, CORRUPTED),
            {"correct": "t17", "wrong": "t99"},
            "2 of 2 do not .*`wrong` must be in the model's vocabulary, got 't99'",
        ),
    ],
)
def test_what_cannot_be_patched_is_said(
    subject: Any, pairs: Any, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        hs.patch(subject, pairs, **given)
    assert "\n" not in str(caught.value)
