"""The dry run: which batches it tries, and how it goes from them to all."""

import json
from types import SimpleNamespace

import pytest
import tiny_models

from analysis.progress import EXAMPLES, Stage
from headscope.cli import main
from headscope.dry_run import _Clock
from headscope.estimate import estimate
from headscope.plan import Options
from headscope.runs import read_all
from headscope.trial_batches import Trial
from probes.inputs import Example
from probes.subject import Subject


def _texts(*lengths):
    return [Example(f"e{number}", text="a " * length) for number, length in enumerate(lengths)]


class Reads:
    """A subject that cannot prepare texts of more than five words."""

    def __init__(self):
        self.prepared = []

    def prepare(self, examples):
        (example,) = examples
        self.prepared.append(example.id)
        if len(example.text.split()) > 5:
            raise ValueError("too long")


def test_batches_are_those_of_the_run_without_what_cannot_be_prepared(monkeypatch):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 4)
    examples = _texts(3, 9, 1, 2, 5, 4, 8, 7)
    trial = Trial.of(Reads(), examples, 2)
    # Shards of four: [9 3] [2 1] and [8 7] [5 4]; the most work first.
    ids = [[e.id for e in group] for group in trial.groups]
    assert ids == [["e4", "e5"], ["e0"], ["e3", "e2"]] or ids == [
        ["e4", "e5"], ["e3", "e2"], ["e0"],
    ]  # fmt: skip
    assert (trial.share, trial.examples, trial.batches) == (1.0, 5.0, 3.0)
    again = trial.regrouped(2)
    assert [[e.id for e in group] for group in again.groups] == [["e4", "e5"], ["e0", "e3"], ["e2"]]
    halves = {"e4": 0, "e5": 0, "e0": 0, "e3": 1, "e2": 1}
    monkeypatch.setattr("analysis.statistics.half_of", lambda name, seed: halves[name])
    assert [again.with_half(half, 0) for half in (0, 1)] == [2.0, 2.0]


def test_where_there_are_too_many_examples_some_speak_for_the_rest(monkeypatch):
    reads, now = Reads(), SimpleNamespace(seconds=0.0)

    def monotonic():
        now.seconds += 0.25  # each look at an example takes a quarter of a second
        return now.seconds

    monkeypatch.setattr("headscope.trial_batches.time", SimpleNamespace(monotonic=monotonic))
    examples = _texts(*[3] * 60 + [9] * 40)
    trial = Trial.of(reads, examples, 5)
    assert 5 < len(reads.prepared) < 10
    unfit = sum(int(name[1:]) >= 60 for name in reads.prepared)
    tried = len(reads.prepared)
    assert 0 < unfit < tried
    assert trial.examples == pytest.approx(100 * (tried - unfit) / tried)
    assert sum(map(len, trial.groups)) == 100 - unfit


def test_the_batch_with_the_most_work_is_tried_and_others_spread_over_the_rest():
    groups = [_texts(length) for length in (9, 8, 7, 6, 5, 4, 3)]
    trial = Trial(groups, 1.0)
    lengths = [len(group[0].text.split()) for group in trial.tried(4)]
    assert lengths == [9, 7, 5, 3]
    assert [len(group[0].text.split()) for group in trial.tried(2)] == [9, 5]
    assert len(Trial(groups[:1], 1.0).tried(4)) == 1


def test_stages_are_brought_to_their_whole_length():
    clock = _Clock(seconds=10.0)
    for total, done, seconds in ((50, 10, 3.0), (4, 4, 2.0), (None, 0, 1.0), (9, 0, 0.0)):
        stage = Stage("", total, EXAMPLES, done)
        stage._stepped = stage._began + seconds
        clock.hear(stage)
        clock.hear(stage)
    # 3 s for 10 of 50 are 15 s: 12 more. The rest is over, or nobody can know.
    assert clock.whole == pytest.approx(10.0 + 12.0)


def test_texts_that_are_too_long_are_no_reason_to_give_up(capsys):
    """Most of prose are: the longest come first, and the first batches hold nothing else."""
    arguments = ["--measures", "entropy", "--dry-run", "--json"]
    assert main(["score", "prose-lm", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["n"] < 64
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()))
    assert set(found["parts"]) == {"first passes", "examples", "tables"}


def test_parts_are_said_where_they_take_long():
    from headscope.estimate import Estimate

    parts = {"first passes": 0.4, "examples": 130.0, "sets of heads": 610.0, "tables": 2.0}
    found = Estimate("m", "d", 7, {"language": (2, 16)}, 3, 48, 10**6, 742.4, parts, 10**4)
    assert (
        "time     about 12 min: examples 2 min, sets of heads 10 min, tables 2 s" in found.lines()
    )


@pytest.mark.parametrize("measures", ["importance", "importance,keep_one,gradient,relevancy"])
def test_studies_are_timed_part_by_part(measures, tmp_path):
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer("left"))
    texts = ["a b c", "the cat sat on a mat .", "a", "d e f g", "h i j", "c c d", "b"]
    data = tmp_path / "texts.txt"
    data.write_text("\n\n".join(texts))
    found = estimate(subject, str(data), Options(measures, batch_size=2, replicates=20))
    assert set(found.parts) == {"first passes", "examples", "sets of heads", "tables"}
    assert found.parts["examples"] > 0 and found.parts["sets of heads"] > 0
    # Effects that are told by vectors of blocks, or patterns, have no sets of heads.
    uniform = Options(measures, batch_size=2, ablation="uniform", replicates=20)
    assert estimate(subject, str(data), uniform).parts["sets of heads"] == 0
    assert list(tmp_path.iterdir()) == [data]


def test_an_example_with_nothing_to_read_may_turn_up_late(tmp_path, monkeypatch):
    """In a batch that is not tried; put together over all shards, it is in one that is."""
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 2)
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer("left"))
    texts = ["the cat sat on a mat .", "j i h g f", "the mat sat on a", "a", "a b c d", "b c d"]
    data = tmp_path / "texts.txt"
    data.write_text("\n\n".join(texts))
    how = Options("importance", batch_size=2, replicates=20)
    examples, _ = read_all(subject, str(data), how)
    tried = [e.text for group in Trial.of(subject, examples, 2).tried(2) for e in group]
    again = Trial.of(subject, examples, 2).regrouped(2).tried(2)
    assert "a" not in tried and "a" in [e.text for group in again for e in group]
    assert estimate(subject, str(data), how).parts["sets of heads"] > 0


def test_nothing_that_can_be_read_is_said(tmp_path, capsys):
    data = tmp_path / "long.txt"
    data.write_text("t01 " * 5000)
    assert main(["score", "repeat-lm", "--data", str(data), "--dry-run"]) == 1
    assert "None of the 1 examples of" in capsys.readouterr().err


def test_an_atlas_is_tried_without_its_map_and_it_is_said(subject, monkeypatch, capsys):
    def made(*_, **__):
        raise AssertionError("A map was made.")

    monkeypatch.setattr("analysis.atlas.study.make_atlas", made)
    found = estimate(subject, "repeats", Options("atlas", limit=24))
    (what,) = found.left_out
    assert what.startswith("the maps of at most 384 patterns (20,000 of 64 x 64 take about two")
    assert found.lines()[-2] == f"without  {what}"
    assert found.parts["tables"] > 0
    assert main("score repeat-lm --measures atlas --limit 24 --dry-run --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == [what]
