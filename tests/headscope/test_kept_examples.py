"""Kept examples of a run: index, patterns within a budget, and runs that have none."""

import json

import numpy as np
import pytest

from analysis.kept_patterns import kept_examples, tokens_of
from analysis.run_files import RunError
from headscope import capture, load
from headscope.batching import batches
from headscope.kept_examples import keep_examples
from headscope.plan import Options
from headscope.runs import score_run
from probes.readers import read_examples


@pytest.fixture(scope="module")
def subject():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def examples(subject):
    return list(read_examples("scenes", subject.kind, 3))


def test_patterns_belong_to_the_run(subject, tmp_path):
    run = score_run(subject, "scenes", tmp_path / "run", Options("entropy", limit=3))
    assert run.manifest is not None
    assert {f"examples/patterns/{n}.safetensors" for n in range(3)} <= set(run.manifest["files"])
    assert run.altered() == []
    (run.path / "examples" / "patterns" / "1.safetensors").write_bytes(b"other")
    assert run.altered() == ["examples/patterns/1.safetensors"]


def test_each_example_has_its_own_patterns(subject, examples, tmp_path):
    keep_examples(tmp_path, subject, examples)
    found = kept_examples(tmp_path)
    assert [one.id for one in found] == [example.id for example in examples]
    for one, example in zip(found, examples, strict=True):
        (batch,) = batches(subject, [example], 1, lambda example, reason: None)
        expected = capture(subject, batch, patterns="language.L1H3").pattern("language.L1H3")[0]
        pattern = one.open_patterns().head("language.L1H3")
        assert one.kept == "whole"
        assert np.abs(pattern.weight - expected.numpy()).max() < 2**-11
        tokens = tokens_of(tmp_path, one.id, "language")
        assert len(tokens) == pattern.keys
        assert tokens["role"].iloc[0] == "bos"
        (picture,) = one.pictures
        assert picture[0].is_file() and picture[1:] == (48, 48)


def test_a_small_budget_keeps_fewer_keys_then_fewer_examples(
    subject, examples, tmp_path, monkeypatch
):
    keep_examples(tmp_path, subject, examples)
    sizes = [one.patterns.stat().st_size for one in kept_examples(tmp_path) if one.patterns]
    monkeypatch.setattr("analysis.kept_patterns.BUDGET_BYTES", sum(sizes) // 4)
    keep_examples(tmp_path, subject, examples)
    found = kept_examples(tmp_path)
    there = [one.patterns.stat().st_size for one in found if one.patterns]
    assert {one.kept for one in found} >= {"strongest"}
    assert sum(there) <= sum(sizes) // 4 + 20_000
    monkeypatch.setattr("analysis.kept_patterns.BUDGET_BYTES", 1000)
    keep_examples(tmp_path, subject, examples)
    found = kept_examples(tmp_path)
    assert [one.patterns for one in found] == [None] * 3
    assert all("do not fit" in one.why_not for one in found)
    assert list((tmp_path / "examples" / "patterns").iterdir()) == []


def test_a_forward_that_fails_leaves_a_reason_and_the_rest(
    subject, examples, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(type(subject), "forward", full)
    keep_examples(tmp_path, subject, examples)
    found = kept_examples(tmp_path)
    assert found[0].why_not == "Its patterns could not be kept: out of memory"
    with pytest.raises(RunError, match="out of memory"):
        found[0].open_patterns()
    assert len(tokens_of(tmp_path, found[0].id, "vision")) == 37


def test_a_run_from_before_there_were_patterns_says_so(subject, examples, tmp_path):
    keep_examples(tmp_path, subject, examples)
    index = tmp_path / "examples" / "index.json"
    records = json.loads(index.read_text())
    for record in records:
        del record["patterns"]
    index.write_text(json.dumps(records))
    with pytest.raises(RunError, match="keeps no attention patterns.*Score again"):
        kept_examples(tmp_path)[0].open_patterns()
    index.write_text(json.dumps([{"id": "a", "patterns": {"file": "../../secret.safetensors"}}]))
    (one,) = kept_examples(tmp_path)
    assert one.patterns is None and "secret" in one.why_not
    assert str(tmp_path / "examples" / "patterns") in one.why_not
    index.write_text("[1]")
    with pytest.raises(RunError, match="cannot be read"):
        kept_examples(tmp_path)
    assert kept_examples(tmp_path / "nowhere") == []
