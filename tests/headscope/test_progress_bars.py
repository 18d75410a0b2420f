"""Stages on stderr: bars in a terminal, lines elsewhere."""

import io
import re
from types import SimpleNamespace

import pytest

from analysis import progress as progress_module
from analysis.progress import Progress
from headscope.cli import progress_bars
from headscope.cli.progress_bars import count_of, stages, time_left_of
from headscope.cli.screen import progress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=50.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(progress_module, "time", fake)
    monkeypatch.setattr(progress_bars, "time", fake)
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _terminal(monkeypatch):
    """Set within the test: pytest exchanges stderr before it."""
    found = Terminal()
    monkeypatch.setattr("sys.stderr", found)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    return found


def _plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_log_has_a_line_every_ten_seconds(clock, capsys):
    with stages("m on d") as listener:
        told = Progress(listener, examples=4000, of="importance")
        stage = told.stage("means", 4000)
        for _ in range(3):
            clock.seconds += 4.0
            stage.step(1000)
        stage.end()
        clock.seconds += 11.0
        told.stage("getting ready", None)
    assert capsys.readouterr().err.splitlines() == [
        "m on d, importance: means: 3,000 of 4,000 examples, about 4 s left",
        "m on d, importance: getting ready: begun",
    ]


def test_a_terminal_has_a_bar_for_each_stage_and_is_clean_afterwards(clock, monkeypatch):
    terminal = _terminal(monkeypatch)
    with stages("m on d") as listener:
        told = Progress(listener, examples=30)
        told.stage("getting ready", None).end()
        first = told.stage("examples", 30, done=10)
        clock.seconds += 6.0
        first.reach(20, skipped=3)
        shown = listener._bars
        shown.refresh()
        during = _plain(terminal.getvalue())
        first.end()
        second = told.stage("pruning", 7, "runs")
        second.step(7)
        shown.refresh()
        tasks = [(task.description, task.completed, task.total) for task in shown.tasks]
    assert "m on d" in during
    assert re.search(r"examples +\S+ +20 of 30 examples, 3 skipped +about 6 s left", during)
    assert tasks == [("examples", 30, 30), ("pruning", 7, 7)]
    assert terminal.getvalue().endswith("\x1b[2K")  # the last line is wiped


def test_bars_are_wiped_after_an_interruption(monkeypatch):
    terminal = _terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), stages("m on d") as listener:
        Progress(listener).stage("examples", 3).step()
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[2K")


def test_what_cannot_be_known_is_not_shown(clock):
    told = Progress()
    unknown = told.stage("getting ready", None)
    assert (count_of(unknown), time_left_of(unknown)) == ("", "")
    endless = told.stage("autoencoder", None, "epochs")
    endless.step(12)
    assert (count_of(endless), time_left_of(endless)) == ("12 epochs", "")
    begun = told.stage("sets", 5120, "runs")
    assert (count_of(begun), time_left_of(begun)) == ("0 of 5,120 runs", "")
    clock.seconds += 30.0
    begun.step(5120)
    assert (count_of(begun), time_left_of(begun)) == ("5,120 of 5,120 runs", "")


def test_work_of_one_stage_is_told_by_counts(clock, capsys):
    with progress("m on d") as show:
        show(0, 8, 0)
        clock.seconds += 12.0
        show(6, 8, 1)
    assert capsys.readouterr().err == "m on d: 6 of 8, 1 skipped, about 4 s left\n"
