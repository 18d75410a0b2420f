"""Stages: what they count, how long the rest will take, and who hears of it."""

from types import SimpleNamespace

import pytest

from analysis import progress as progress_module
from analysis.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = SimpleNamespace(seconds=100.0)
    fake = SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(progress_module, "time", fake)
    return now


def _heard():
    heard = []

    def listen(stage):
        heard.append((stage.name, stage.done, stage.total, stage.unit, stage.ended))

    return heard, listen


def test_every_step_is_told_with_the_name_of_whose_it_is():
    heard, listen = _heard()
    stage = Progress(listen, of="importance").stage("sets of heads", 7, "runs")
    stage.step(2)
    stage.step(5)
    stage.end()
    assert {entry[0] for entry in heard} == {"importance: sets of heads"}
    assert [entry[1:] for entry in heard] == [
        (0, 7, "runs", False),
        (2, 7, "runs", False),
        (7, 7, "runs", False),
        (7, 7, "runs", True),
    ]


def test_the_rest_takes_as_long_as_what_was_done(clock):
    stage = Progress().stage("examples", 20)
    assert stage.seconds_left is None
    clock.seconds += 6.0
    stage.step(3)
    assert stage.seconds_left == pytest.approx(6.0 / 3 * 17)
    clock.seconds += 4.0  # nothing has been done since, and time goes by
    assert stage.seconds_left == pytest.approx(30.0)
    clock.seconds += 1000.0
    assert stage.seconds_left == 0.0
    stage.end()
    assert stage.seconds_left == 0.0


def test_what_an_earlier_run_did_says_nothing_about_speed(clock):
    stage = Progress().stage("examples", 20, done=11)
    assert (stage.done, stage.seconds_left) == (11, None)
    clock.seconds += 8.0
    stage.reach(13, skipped=1)
    assert stage.seconds_left == pytest.approx(8.0 / 2 * 7)
    assert stage.skipped == 1


def test_a_total_that_nobody_knows_is_not_made_up(clock):
    stage = Progress().stage("getting ready", None)
    clock.seconds += 5.0
    stage.step(3)
    assert stage.seconds_left is None and stage.total is None


def test_each_pass_over_the_data_is_a_stage_that_counts_examples():
    heard, listen = _heard()
    batches = [SimpleNamespace(size=3), SimpleNamespace(size=2)]
    data = Progress(listen, examples=6, of="atp").over("means", lambda: batches)
    assert heard == []  # nothing has begun
    assert list(data()) == batches
    told = [entry[1:] for entry in heard]
    # One of six examples could not be prepared: what is over has ended, and is not made up for.
    assert told == [
        (0, 6, "examples", False),
        (3, 6, "examples", False),
        (5, 6, "examples", False),
        (5, 6, "examples", True),
    ]
    assert list(data()) == batches and len(heard) == 8


def test_a_batch_is_done_when_the_next_is_asked_for():
    heard, listen = _heard()
    passing = iter(Progress(listen, examples=2).over("means", lambda: [SimpleNamespace(size=2)])())
    next(passing)
    assert [done for _, done, *_ in heard] == [0]
    assert next(passing, None) is None
    assert [done for _, done, *_ in heard] == [0, 2, 2]


def test_without_a_listener_nobody_minds():
    stage = Progress().stage("examples", 3)
    stage.step()
    stage.end()
    assert (stage.done, stage.ended) == (1, True)
