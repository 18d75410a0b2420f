"""What a training shows while it runs."""

import sys

import pytest

from headscope.cli.coder_progress import cells, training_shown
from sae.training.metrics import Notice, Record


def record(site="language.L1", step=10, tokens=2_560, seconds=2.0, explained=0.5):
    return Record(site, step, 40, tokens, 3.25, {}, 8.0, explained, 5, 1e-3, seconds)


def test_a_row_says_speed_and_time_left_since_the_first_record():
    first, now = record(), record(step=20, tokens=5_120, seconds=4.0, explained=0.75)
    assert cells(first) == (
        "language.L1", "10 of 40", "2,560", "0.500", "8.0", "5", "3.25", "", "",
    )  # fmt: skip
    assert cells(now, first)[-2:] == ("1,280", "4 s")
    assert cells(record(explained=None))[3] == "–"


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("headscope.cli.coder_progress.SECONDS_BETWEEN_LINES", 0.0)
    with training_shown("m on d") as hear:
        hear(record())
        hear(Notice("Goes on."))
        hear(record(step=40, tokens=10_240, seconds=8.0, explained=0.75))
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("m on d, language.L1: step 10 of 40, 2,560 tokens")
    assert lines[1] == "m on d: Goes on."
    assert lines[2] == (
        "m on d, language.L1: step 40 of 40, 10,240 tokens, explained variance 0.750, L0 8.0, "
        "5 dead, 1,280 tokens/s"
    )


def test_few_lines_by_default_but_always_the_last_one(capsys):
    with training_shown("m") as hear:
        for step in (10, 20, 30, 40):
            hear(record(step=step))
    assert [line.split(":")[1].split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        " step 40 of 40"
    ]


def test_a_table_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with training_shown("m on d") as hear:
        hear(record())
        hear(record("vision.L0", 12))
        hear(Notice("A notice."))
    err = capsys.readouterr().err
    for part in ("m on d", "explained", "language.L1", "12 of 40", "A notice."):
        assert part in err


@pytest.mark.parametrize("rank", ["1", "3"])
def test_other_processes_show_nothing(capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    with training_shown("m") as hear:
        hear(record(step=40))
    assert capsys.readouterr().err == ""
