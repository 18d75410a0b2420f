"""`sinks` in run folders and on the command line: its tables, what is printed, interrupted runs."""

from __future__ import annotations

import pandas as pd
import pytest
from stopped_runs import stopped_after

from analysis.run_folder import open_run
from headscope.cli import main
from headscope.plan import Options
from headscope.runs import score_run
from probes.loading import load

HOW = Options("sinks", limit=9, batch_size=4, replicates=20)


@pytest.fixture(scope="module")
def llava():
    return load("shapes-llava-sinks")


@pytest.fixture(scope="module")
def run(llava, tmp_path_factory):
    return score_run(llava, "scenes", tmp_path_factory.mktemp("runs") / "run", HOW)


def test_the_tables_lie_in_the_section_of_vision(run):
    section = run.sections["vision"]
    assert section.finished and set(section.tables) == {
        "heads", "massive", "massive_entries", "patch_norms", "sink_dimensions", "sink_tokens",
    }  # fmt: skip
    chosen = section.table("sink_dimensions").query("chosen")
    assert sorted(chosen["dimension"]) == [41, 97] and set(chosen["n"]) == {9}
    assert "sink_mass" in run.heads.measures


def test_what_is_printed_names_dimensions_tokens_and_heads(run, capsys):
    assert main(["show", str(run.path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Sinks of language are massive in dimensions 41, 97 of 136." in out
    assert "<bos>, position 0 text 0 to 4 100 % 10.4" in out
    assert "patch row 0, column 5 visual 0 to 4 100 % 11.0" in out
    assert "patch row 5, column 0 visual 0 to 4 100 %" in out
    for kind in ("text", "visual"):
        assert f"14 of 32 heads of language give {kind} sinks more than uniform attention" in out
    assert "dimension 41 at <bos>, position 0 (400)" in out
    assert "Patches of vision above median + 6 MAD in layer 3:" in out


def test_an_interrupted_run_goes_on_and_gives_the_same(llava, run, tmp_path, monkeypatch):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 4)
    with stopped_after(2):
        score_run(llava, "scenes", tmp_path / "run", HOW)
    score_run(llava, "scenes", tmp_path / "run", HOW, resume=True)
    again = open_run(tmp_path / "run")
    pd.testing.assert_frame_equal(again.heads.frame, run.heads.frame, rtol=1e-4, atol=1e-6)
    for name in ("sink_tokens", "massive_entries"):
        left, right = (one.sections["vision"].table(name) for one in (again, run))
        pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)


def test_models_without_sinks_say_so(tmp_path, capsys):
    path = str(tmp_path / "run")
    assert main(["score", "repeat-lm", "--measures", "sinks", "--limit", "3", "--out", path]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No dimension of language is massive at a sink." in out
    assert "image_centric: no dimension of language is massive at a sink, so no token is" in out
    assert "Largest |x| of language:" in out and "Tokens that draw" not in out
