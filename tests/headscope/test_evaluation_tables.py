"""Journals and tables of an evaluation from made-up answers: times, files, text."""

from __future__ import annotations

import errno
import math

import pandas as pd
import pytest

from analysis.atomic_file import DiskFull
from analysis.hallucination.sheet import Sheet
from headscope.evaluating.answer_journal import Answer, AnswerJournal, Chunk
from headscope.evaluating.conditions import Condition
from headscope.evaluating.result import Evaluation
from headscope.evaluating.summary import as_text, parts
from headscope.evaluating.tables import COLUMNS, evaluation_frame

EDIT = "zero:heads=language.L0H1+language.L0H2"


class OneMetric:
    """The length of answers, as a task."""

    name, units, averages = "chair", {"chair_s": "characters"}, {}

    def sheet(self, answers):
        rows = {name: {("chair_s", ""): (len(a.text), 1)} for name, a in answers.items()}
        return Sheet.of(rows)


def chunk(number, texts, first, later, steps):
    answers = tuple(Answer(name, text, 3, True) for name, text in texts.items())
    return Chunk(number, answers, first, later, steps)


def journal(*chunks):
    made = AnswerJournal()
    for one in chunks:
        made.add(one)
    return made


@pytest.fixture
def frame():
    conditions = [
        Condition("baseline", "baseline"),
        Condition(EDIT),
        Condition(EDIT, "control", 4),
        Condition(EDIT, "control", 5),
    ]
    first, second, third = {"p": "aa", "q": "b"}, {"r": "cccc"}, {"s": ""}
    journals = {
        "baseline": journal(
            chunk(0, first, 1.0, 4.0, 4), chunk(1, second, 2.0, 6.0, 3), chunk(2, third, 1, 0, 0)
        ),
        EDIT: journal(
            chunk(0, {"p": "a", "q": "b"}, 3.0, 6.0, 3),
            chunk(1, {"r": "c"}, 2.0, 10.0, 5),
            chunk(2, {"s": "d"}, 4.0, 7.0, 1),
        ),
    }
    for seed, text in ((4, "aaa"), (5, "a")):
        journals[f"{EDIT}, random heads {seed}"] = journal(
            chunk(0, {"p": text, "q": text}, 1, 4, 4),
            chunk(1, {"r": text}, 2, 6, 3),
            chunk(2, {"s": text}, 1, 0, 0),
        )
    return evaluation_frame(OneMetric(), conditions, journals, seed=0, replicates=50)


def line(frame, metric, kind, seed=-1):
    chosen = (frame["metric"] == metric) & (frame["kind"] == kind) & (frame["seed"] == seed)
    (one,) = frame[chosen].to_dict("records")
    return one


def test_times_are_medians_of_the_same_chunks(frame):
    # Seconds per later token: 2 against 1, 2 against 2, and a chunk in which nothing came later.
    assert line(frame, "time_per_token", "edit")["value"] == pytest.approx(1.5)
    assert line(frame, "time_per_token", "edit")["n"] == 2
    assert line(frame, "time_per_token", "edit")["difference"] == pytest.approx(0.5)
    # Seconds to the first token: 3, 1 and 4 times the baseline's.
    assert line(frame, "time_to_first_token", "edit")["value"] == pytest.approx(3)
    assert line(frame, "time_to_first_token", "edit")["n"] == 3
    assert line(frame, "time_per_token", "baseline")["value"] == 1
    assert line(frame, "time_per_token", "control")["n"] == 4


def test_lines_of_a_condition_stand_together(frame):
    assert list(frame.columns) == list(COLUMNS)
    order = frame[["kind", "seed"]].drop_duplicates().to_numpy().tolist()
    assert order == [
        ["baseline", -1],
        ["edit", -1],
        ["control", 4],
        ["control", 5],
        ["control", -1],
    ]
    assert line(frame, "chair_s", "baseline")["value"] == pytest.approx(7 / 4)
    assert line(frame, "chair_s", "control")["value"] == pytest.approx((3 + 1) / 2)
    assert line(frame, "chair_s", "edit")["beyond_control"] == pytest.approx(1 - 2)
    assert math.isnan(line(frame, "time_per_token", "edit")["beyond_control"])


@pytest.fixture
def found(frame):
    plan = {
        "task": "chair",
        "seed": 0,
        "data": {"name": "mine"},
        "model": {"name": "m", "class": "C", "dtype": "float32"},
    }
    skipped = [{"id": "x", "reason": "it has no image"}]
    return Evaluation(frame, pd.DataFrame(), [], ["A note."], skipped, plan)


def test_the_text_of_an_evaluation(found):
    text = repr(found)
    assert text.startswith("m (C, float32) on mine: chair, 4 images, seed 0")
    assert "What is made up" in text and "Beyond its random-head control" in text
    assert f"is {EDIT}" in text  # the name was cut in the table
    assert "A note." in text and "Skipped 1 example; the first: x: it has no image" in text
    lines = text.splitlines()
    assert all(line == line.rstrip() for line in lines)
    table = lines[lines.index("What is made up") + 1 :][:4]
    assert [row.split("  ")[0].strip() or "control" for row in table[1:]] == [
        "baseline",
        "zero:heads=language.L0H1+…",
        "control",
    ]


def test_tables_are_split_to_fit(found):
    for width in (60, 80, 200):
        for part in parts(found):
            for piece in part.split(width):
                widths = zip(*([*piece.rows, piece.columns]), strict=True)
                total = sum(max(len(cell.lstrip(">")) for cell in cells) + 2 for cells in widths)
                assert total <= width or len(piece.columns) == 2
    assert max(map(len, as_text(found, 70).split("\n\n±")[0].splitlines())) <= 70


def test_a_journal_is_read_back_without_a_torn_line(tmp_path):
    path = tmp_path / "answers" / "00.jsonl"
    first = Chunk(3, (Answer("p", "ä\n", 2, True, -0.5),), 1.5, 0.5, 2, 3, 4)
    second = Chunk(5, (), skipped=({"id": "q", "reason": "no"},))
    written = AnswerJournal(path)
    written.add(first)
    written.add(second)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 6, "answers": [{"id')
    again = AnswerJournal(path)
    assert again.chunks == {3: first, 5: second}
    assert (again.answered, again.left_out) == (1, 1)
    assert path.read_bytes() == whole
    again.add(Chunk(6, ()))
    assert set(AnswerJournal(path).chunks) == {3, 5, 6}


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "00.jsonl"
    written = AnswerJournal(path)
    written.add(Chunk(0, ()))
    whole = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("headscope.evaluating.answer_journal.os.fsync", full)
    with pytest.raises(DiskFull, match="No space is left on the disk for"):
        written.add(Chunk(1, ()))
    assert path.read_bytes() == whole
    assert set(written.chunks) == {0}
