"""`headscope evaluate`: its table, JSON, exit codes, and how to go on after Ctrl-C."""

from __future__ import annotations

import json

import pytest

from headscope.cli import main
from headscope.evaluating import answering

ZERO = "zero:heads=language.L0H1"
FEW = ["--limit", "6", "--batch-size", "3", "--max-new-tokens", "8", "--edit", ZERO]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["evaluate", "shapes-llava", *FEW, "--out", str(path)]) == 0
    return path


def test_the_table_can_be_shown_again(finished, capsys):
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "shapes-llava (LlavaForConditionalGeneration, float32) on scenes-broken: chair" in out
    assert "What is made up" in out and "p(absent partner)" in out
    assert f"{ZERO}: random heads" in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_results_go_to_stdout_as_json(finished, capsys):
    assert main(["show", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics = {(line["edit"], line["kind"], line["metric"]) for line in found["metrics"]}
    assert (ZERO, "control", "chair_i") in metrics
    assert ("baseline", "baseline", "absent_partner_probability") in metrics
    assert found["plan"]["task"] == "chair"
    assert found["reports"][0]["touched"] > 0


def test_a_poll(capsys, tmp_path):
    arguments = ["evaluate", "shapes-llava", "--task", "pope", "--limit", "3", "--control", "0"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "Mean over the splits" in out and "Split adversarial" in out
    assert "yes ratio" in out


def test_interruption_is_130_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    real, calls = answering._answer_batch, []

    def stopped(subject, batch, asking, done):
        calls.append(asking.max_new_tokens)
        if calls.count(8) > 4:
            raise KeyboardInterrupt
        return real(subject, batch, asking, done)

    monkeypatch.setattr(answering, "_answer_batch", stopped)
    out = str(tmp_path / "run")
    arguments = ["evaluate", "shapes-llava", *FEW, "--out", out]
    monkeypatch.setattr("sys.argv", ["headscope", *arguments])
    assert main(arguments) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert f"what was answered is safe in {out}, go on with: headscope evaluate" in said.err
    assert f"--out {out} --resume" in said.err
    assert main(["show", out]) == 1
    assert "is unfinished (4 chunks of answers)" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    assert "What is made up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["repeat-lm"], "'repeat-lm' is a language model; hallucinated objects", 2),
        (["shapes-vit"], "'shapes-vit' is a vision model; hallucinated objects", 2),
        (["shapes-llava", "--edit", "zer:heads=L0"], "An edit must be one of", 2),
        (["shapes-llava", "--edit", "scale:heads=L0,factor=x"], "must be a number, got 'x'", 2),
        (["shapes-llava", "--edit", "zero:heads=language.L7"], "'language.L7' must name heads", 2),
        (["shapes-llava", "--task", "bleu"], "The task must be one of chair, pope", 2),
        (["shapes-llava", "--resume"], "`--resume` needs `--out`", 2),
        (["shapes-llava", "--probe", "a"], "`--probe` and `--continuation` go together", 2),
        (["shapes-llava", "--limit", "0"], "`--limit` must be at least 1", 2),
        (["shapes-llava", "--data", "digits"], "the data need `objects`", 2),
        (["shapes-llava", "--data", "nowhere"], "is neither a bundled set", 1),
        (["shapes-llava", "--synonyms", "none.json"], "No such file", 1),
        (["no-such-model"], "no-such-model", 1),
    ],
)
def test_one_sentence_and_an_exit_code(arguments, sentence, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        ({"objects": ["red star"]}, 1, "None of the 2 prompts could be asked; the first: Image"),
        ({}, 2, "the data need `objects`"),
    ],
)
def test_images_that_do_not_decode_are_no_wrong_question(more, code, sentence, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    lines = [{"id": name, "image": "bad.png", **more} for name in ("a", "b")]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    asked = ["evaluate", "shapes-llava", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(asked) == code
    said = capsys.readouterr()
    assert said.out == "" and sentence in said.err
