from __future__ import annotations

import json

import pytest

from sae.training.metrics import METRICS, MetricsFile, Record, read_metrics


def _record(step: int) -> Record:
    return Record(
        site="language.L2",
        step=step,
        steps=9,
        tokens=step * 8,
        loss=1.5,
        parts={"reconstruction": 1.25, "auxiliary": 0.25},
        l0=3.0,
        explained_variance=None,
        dead=2,
        lr=1e-3,
        seconds=0.5,
    )


def test_each_record_is_a_line_that_can_be_read_while_the_training_runs(tmp_path):
    file = MetricsFile(tmp_path / METRICS)
    file.add(_record(1))
    file.add(_record(2))
    with file.path.open("a") as stream:
        stream.write('{"site": "langu')
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1]["parts"] == {"reconstruction": 1.25, "auxiliary": 0.25}
    assert lines[1]["explained_variance"] is None


def test_what_was_logged_after_a_checkpoint_is_cut_off(tmp_path):
    file = MetricsFile(tmp_path / METRICS)
    assert file.length() == 0
    file.add(_record(1))
    length = file.length()
    file.add(_record(2))
    with file.path.open("a") as stream:
        stream.write('{"half')
    file.cut(length)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    file.add(_record(2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_metrics_that_the_checkpoint_knows_and_the_file_lacks_are_a_sentence(tmp_path):
    file = MetricsFile(tmp_path / METRICS)
    file.add(_record(1))
    with pytest.raises(ValueError, match=r"must hold the 1,000 bytes of the checkpoint, it has"):
        file.cut(1_000)
    assert read_metrics(tmp_path)[0]["step"] == 1


def test_numbers_that_are_not_json_are_refused(tmp_path):
    file = MetricsFile(tmp_path / METRICS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.add(Record(**{**json.loads(json.dumps(vars(_record(1)))), "loss": float("nan")}))
    assert not file.path.exists()
