"""`headscope compare` and `hs.compare` on run folders without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_runs import drawn_run

import headscope as hs
from headscope.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two runs of ten examples; head L1H2 is higher by 2 in the second."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(3)
    scores = rng.normal(3, 1, (10, 8))
    moved = scores + rng.normal(0, 0.1, scores.shape)
    moved[:, 6] += 2
    drawn_run(folder / "a", scores)
    drawn_run(folder / "b", moved)
    return str(folder / "a"), str(folder / "b")


def test_json_equals_the_python_twin(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *runs, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = hs.compare(*(Path(run) for run in runs))
    assert said["paired"] is True and said["left_out"] == []
    assert [line["difference"] for line in said["heads"]] == found.heads["difference"].tolist()
    assert said["ranks"][0]["moved"] == 1
    assert said["heads"][6]["q"] < 0.001


def test_the_screen_names_the_head_that_moved(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert "Heads that moved, the surest first (1 of 1)" in text
    assert "language.L1H2" in text and "resampling each example in both runs" in text
    assert main(["compare", *runs, "--separate"]) == 0
    assert "as of separate samples (not asked for)" in capsys.readouterr().out
    assert main(["compare", runs[0], runs[0]]) == 0
    assert "No head moved beyond chance." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--measures", "vhd"], "`measures` must be in both tables, the left one has no 'vhd'"),
        (["--towers", "a,b,c"], "`--towers` must be one name or two, got 3"),
        (["--towers", "sight"], "`towers` must be in both tables"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], extra: list[str], sentence: str
) -> None:
    assert main(["compare", *runs, *extra]) != 0
    assert sentence in capsys.readouterr().err
    assert main(["compare", runs[0], "nowhere"]) == 1
    assert "does not exist" in capsys.readouterr().err
