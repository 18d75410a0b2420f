"""The command line: exit codes, one sentence per error, JSON, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headscope.cli import main

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--measures", "entropy,previous_token,z_norm", "--limit", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["score", "repeat-lm", *FEW, "--out", str(path)]) == 0
    return path


def _fails(capsys, arguments, code):
    """Exit code as expected, nothing on stdout, one line without a traceback on stderr."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0][-1] in ".?"
    return lines[0]


def test_score_prints_a_table_and_makes_a_run(finished, capsys):
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "repeat-lm (LlamaForCausalLM, float32) on repeats, seed 0" in out
    assert "(finished)" in out
    assert "language: 2 layers, 16 heads, n = 4" in out
    row = next(line for line in out.splitlines() if line.startswith(" entropy"))
    assert "nats" in row and "±" in row and "L0H" in row
    assert all(line == line.rstrip() for line in out.splitlines())


def test_results_go_to_stdout_as_json(finished, capsys):
    assert main(["show", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] is True
    assert found["n"] == 4
    measures = {line["measure"]: line for line in found["summary"]}
    assert set(measures) == {"entropy", "previous_token", "z_norm"}
    top = measures["entropy"]["top"][0]
    assert top["name"] == f"language.L{top['layer']}H{top['head']}"
    assert top["ci_low"] <= top["value"] <= top["ci_high"]


def test_inspect_says_what_there_is(capsys):
    assert main(["inspect", "repeat-lm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tower = found["towers"]["language"]
    assert (tower["layers"], tower["heads"], tower["head_width"]) == (2, 8, 16)
    assert tower["source"] == ["sdpa"]
    assert tower["mismatch"] < 1e-5
    assert found["anatomy"]["language output projection"] == "all 2 layers"
    assert main(["inspect", "repeat-lm"]) == 0
    assert "pattern from" in capsys.readouterr().out


def test_models_lists_models_and_sets(capsys):
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"]["repeat-lm"]["default_set"] == "repeats"
    assert found["sets"]["repeats"]["n"] == 64


def test_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["score", "repeat-lm", *FEW, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["towers"] == {"language": [2, 16]}
    assert found["n"] == 4
    assert found["columns"] % 16 == 0
    assert found["memory_bytes"] > 1e8
    assert main(["score", "repeat-lm", *FEW, "--dry-run"]) == 0
    assert "Nothing was written." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["score"], "Missing argument 'MODEL'"),
        (["score", "repeat-lm", "--limt", "3"], "No such option: --limt"),
        (["score", "repeat-lm", "--limit", "0"], "`--limit` must be at least 1, got 0."),
        (["score", "repeat-lm", "--limit", "two"], "Invalid value for '--limit'"),
        (["score", "repeat-lm", "--measures", "entrop"], "Did you mean entropy"),
        (["score", "repeat-lm", "--measures", "mean_hop"], "'mean_hop' does not apply"),
        (["score", "repeat-lm", "--resume"], "`--resume` needs `--out`"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_asked_wrongly_is_2(arguments, sentence, capsys):
    assert sentence in _fails(capsys, arguments, 2)


def test_could_not_is_1(tmp_path, capsys, finished):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "note.md").write_text("x")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(bytes(range(256)))
    for arguments, sentence in (
        (["score", "no-such-model"], "Model 'no-such-model'"),
        (["score", "no/such-model"], "no/such-model"),
        (["score", "repeat-lm", "--data", "no-such-data"], "'no-such-data'"),
        (["score", "repeat-lm", "--data", str(empty)], "is empty"),
        (["score", "repeat-lm", "--data", str(binary)], "binary.txt"),
        (["score", "repeat-lm", *FEW, "--out", str(texts)], "holds something else (note.md)"),
        (["score", "repeat-lm", *FEW, "--out", str(empty)], "must be a folder"),
        (["score", "repeat-lm", *FEW, "--out", str(finished)], "holds a finished run"),
        (["show", str(tmp_path)], "is not a run"),
        (["show", str(tmp_path / "nowhere")], "does not exist"),
    ):
        assert sentence in _fails(capsys, arguments, 1)
    assert [item.name for item in texts.iterdir()] == ["note.md"]


def test_debug_shows_where(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HEADSCOPE_DEBUG", "1")
    assert main(["show", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_told_as_one(monkeypatch, capsys, tmp_path):
    def broken(path):
        return {}["oops"]

    monkeypatch.setattr("analysis.run_folder.open_run", broken)
    sentence = _fails(capsys, ["show", str(tmp_path)], 1)
    assert "failed where it should not: KeyError: 'oops'" in sentence


def _start(out):
    arguments = ["score", "repeat-lm", "--data", "texts-many", "--batch-size", "1"]
    arguments += ["--measures", "entropy"]
    return subprocess.Popen(
        [sys.executable, "-m", "headscope", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=out.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # A job that a shell put in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_130_and_says_how_to_go_on(number, tmp_path):
    lines = [json.dumps({"id": str(i), "text": f"t01 t02 t{i % 60:02d}"}) for i in range(20_000)]
    (tmp_path / "texts-many").mkdir()
    (tmp_path / "texts-many" / "examples.jsonl").write_text("\n".join(lines))
    out = tmp_path / "run"
    process = _start(out)
    deadline = time.monotonic() + 120
    while not list(out.glob("journal/*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    second = subprocess.run(
        [sys.executable, "-m", "headscope", "show", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "being written: " in second.stdout, second.stderr
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "shards are safe in" in stderr
    assert f"--out {out} --resume" in stderr
    assert "Traceback" not in stderr
    assert not list(out.rglob("*.part"))
