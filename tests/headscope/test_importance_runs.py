"""Studies in run folders and on the command line: what is written, printed, refused, resumed."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from PIL import Image
from stopped_runs import stopped_after

from analysis.importance.leave_one_out import Ablation
from analysis.run_folder import open_run
from analysis.statistics import half_of
from headscope.cli import main
from headscope.plan import Options
from headscope.runs import score_run
from headscope.scorer import Scorer
from headscope.scoring import score
from probes.replay import RecordedForward
from probes.subject import Subject

HOW = Options("entropy,importance,gradient,direct", limit=6, batch_size=3, replicates=20)


@pytest.fixture(scope="module")
def run(subject, tmp_path_factory):
    return score_run(subject, "repeats", tmp_path_factory.mktemp("runs") / "run", HOW)


def test_lines_of_studies_lie_in_their_section_and_in_the_runs_table(run):
    section = run.sections["importance"]
    assert section.finished
    assert {"heads", "agreement", "examples", "joint", "pruning", "direct"} <= set(section.tables)
    measures = run.heads.measures
    assert measures[0] == "entropy"
    assert {"importance_cross_entropy", "layer_off_cross_entropy", "direct_logit"} <= set(measures)
    assert "importance_cross_entropy" not in run.manifest["measures"]
    assert "importance_cross_entropy" in run.manifest["studies"]["importance"]
    assert run.altered() == []
    line = run.heads.lines("importance_cross_entropy").iloc[0]
    assert line["variant"] == "ablation=mean" and line["unit"] == "nats"
    assert line["ci_low"] <= line["value"] <= line["ci_high"]
    assert line["null_low"] <= line["null_high"]


def test_a_run_gives_the_numbers_of_score(run, subject):
    table = score(subject, "repeats", "importance,gradient", limit=6, batch_size=3, replicates=20)
    for measure in ("importance_cross_entropy", "mask_gradient_cross_entropy"):
        variant = table.variants(measure)[0]
        np.testing.assert_allclose(
            run.heads.grid(measure, variant=variant), table.grid(measure, variant=variant),
            rtol=1e-6, atol=1e-9,
        )  # fmt: skip


def test_effects_by_example_average_to_the_value(run):
    table = run.sections["importance"].table("examples")
    assert len(table) == 6
    mean = table["importance_cross_entropy ablation=mean language.L0H5"].mean()
    reads = [15, 19, 23, 27, 15, 19]
    value = run.heads.grid("importance_cross_entropy")[0, 5]
    by_example = table["importance_cross_entropy ablation=mean language.L0H5"].to_numpy()
    assert sorted(reads) == sorted(reads)
    assert by_example.min() <= value <= by_example.max()
    assert abs(mean - value) < 0.5 * (by_example.max() - by_example.min())


def test_agreement_has_a_line_for_every_estimate_with_chance_beside_it(run):
    table = run.sections["importance"].table("agreement")
    assert set(table["exact"]) == {"importance_cross_entropy"}
    assert {"mask_gradient_cross_entropy", "direct_logit"} <= set(table["estimate"])
    assert table["spearman"].between(-1, 1).all()
    assert (table["overlap_chance"] == 3 / 16).all()
    assert (table["heads"] == 16).all()


def test_an_interrupted_study_goes_on_and_gives_the_same(subject, tmp_path, monkeypatch, run):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 3)
    with stopped_after(1):
        score_run(subject, "repeats", tmp_path / "run", HOW)
    assert open_run(tmp_path / "run").shards == (1, 2)
    again = score_run(subject, "repeats", tmp_path / "run", HOW, resume=True)
    for measure in ("importance_cross_entropy", "direct_logit"):
        np.testing.assert_allclose(
            again.heads.grid(measure), run.heads.grid(measure), rtol=1e-5, atol=1e-7
        )


def test_a_run_tells_its_stages_by_name(subject, tmp_path):
    heard = {}

    def listen(stage):
        heard.setdefault((stage.name, stage.unit), []).append((stage.done, stage.total))

    how = Options("entropy,importance,atp", limit=6, batch_size=4, replicates=20)
    score_run(subject, "repeats", tmp_path / "run", how, progress=listen)
    first, second = (sum(half_of(e, 0) == half for e in _repeats(6)) for half in (0, 1))
    counted = {key: told[-1] for key, told in heard.items()}
    assert counted == {
        ("importance: getting ready", "examples"): (0, None),
        ("importance: means of heads", "examples"): (6, 6),
        ("atp: getting ready", "examples"): (0, None),
        ("atp: means of heads", "examples"): (6, 6),
        ("atp: means of queries and keys", "examples"): (6, 6),
        ("examples", "examples"): (6, 6),
        ("importance: one after the other", "runs"): (42 * first, 42 * first),
        ("importance: sets of heads", "runs"): (63 * second, 63 * second),
        ("importance: pruning", "runs"): (24 * second, 24 * second),
    }
    assert [done for done, _ in heard["examples", "examples"]] == [0, 0, 4, 6, 6, 6]


def test_what_ablations_changed_stands_in_the_section_and_on_the_screen(run, capsys):
    words = sum(len(text.split()) + 1 for text in _repeats(6).values())  # and <s>
    layer_off, one = sorted(
        run.sections["importance"].manifest["touched"], key=lambda line: line["rows"], reverse=True
    )
    assert one == {
        "tower": "language",
        "measure": "importance_cross_entropy",
        "variant": "ablation=mean",
        "heads": 16,
        "examples": 6,
        "ablations": 6 * 16,
        "rows": [words, words],
        "changed": [words, words],
        "unchanged": [],
        "reason": "",
    }
    assert (layer_off["measure"], layer_off["ablations"]) == ("layer_off_cross_entropy", 6 * 2)
    assert layer_off["changed"] == [8 * words, 8 * words]
    assert main(["show", str(run.path)]) == 0
    line = f"mean ablation: 16 heads x 6 examples, {words} rows of z changed for each"
    assert line in capsys.readouterr().out.splitlines()
    assert main(["show", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["touched"] == [one, layer_off]
    joint = run.sections["importance"].table("joint")
    judged = sum(
        len(text.split()) + 1 for name, text in _repeats(6).items() if half_of(name, 0) == 1
    )
    assert (joint["rows_changed"] == joint["top"] * judged).all()


def test_stopped_among_the_sets_of_heads_nothing_is_lost(
    subject, tmp_path, monkeypatch, capsys, run
):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 3)
    out = tmp_path / "run"
    arguments = ["--measures", HOW.measures, "--limit", "6", "--batch-size", "3"]
    real, calls = RecordedForward.run, []

    def stopped(self, changes):
        calls.append(len(changes))
        if calls.count(2) > 5:  # heads of both layers at once: one head alone has one
            raise KeyboardInterrupt
        return real(self, changes)

    with monkeypatch.context() as patched:
        patched.setattr(RecordedForward, "run", stopped)
        assert main(["score", "repeat-lm", *arguments, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert f"2 of 2 shards are safe in {out}, go on with: " in said and "--resume" in said
    assert not open_run(out).finished and not open_run(out).sections

    def again(*_):
        raise AssertionError("no example is scored twice")

    monkeypatch.setattr(Scorer, "score", again)
    assert main(["score", "repeat-lm", *arguments, "--out", str(out), "--resume"]) == 0
    resumed, section = open_run(out), run.sections["importance"]
    assert resumed.finished
    mine = resumed.sections["importance"]
    assert mine.manifest["touched"] == section.manifest["touched"]
    for name in ("joint", "pruning"):
        one, other = mine.table(name), section.table(name)
        assert one["rows_changed"].tolist() == other["rows_changed"].tolist()
        np.testing.assert_allclose(one["value"], other["value"], rtol=1e-5, atol=1e-6)
    for measure in ("importance_cross_entropy", "direct_logit"):
        np.testing.assert_allclose(
            resumed.heads.grid(measure), run.heads.grid(measure), rtol=1e-5, atol=1e-6
        )


def test_another_ablation_is_another_plan(subject, tmp_path, monkeypatch):
    from analysis.run_folder import RunError

    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 2)
    how = Options("importance", limit=4, batch_size=2, ablation="zero")
    with stopped_after(1):
        score_run(subject, "repeats", tmp_path / "run", how)
    other = Options("importance", limit=4, batch_size=2, ablation="mean")
    with pytest.raises(RunError, match="ablation was 'zero', now 'mean'"):
        score_run(subject, "repeats", tmp_path / "run", other, resume=True)


def test_the_screen_shows_intervals_nulls_halves_and_agreement(run, capsys):
    assert main(["show", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "importance_cross_entropy, ablation=mean: what is lost without the head, in nats" in out
    assert "95 % interval" in out and "above its null" in out
    assert "Two halves of the examples rank the heads alike: language" in out
    assert "Chosen on one half of the examples, judged on the other:" in out
    assert "Can the estimates of importance_cross_entropy be trusted here?" in out
    assert main(["show", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {line["measure"] for line in found["summary"]}
    assert "importance_cross_entropy" in names


def test_classes_have_a_table_of_their_own(tmp_path):
    how = Options(
        "importance", limit=24, batch_size=8, effect="probability,flip", ablation="zero",
        replicates=10,
    )  # fmt: skip
    from probes.loading import load

    run = score_run(load("shapes-vit"), "shapes", tmp_path / "run", how)
    table = run.sections["importance"].table("classes")
    assert set(table["class"]) <= {"circle", "square", "triangle", "cross", "star", "ring"}
    head = table[(table["layer"] == 1) & (table["head"] == 2)]
    head = head[head["measure"] == "importance_probability"]
    whole = run.heads.grid("importance_probability")[1, 2]
    counted = head["n"].sum()
    mean = float((head["value"] * head["n"]).sum() / counted)
    assert abs(mean - whole) < 0.05 or counted < 24


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--measures", "importance", "--effect", "loss"], 2, "An effect must be one of"),
        (["--measures", "importance", "--ablation", "noise"], 2, "An ablation must be one of"),
        (["--measures", "entropy", "--effect", "jsd"], 2, "`--effect jsd` must come with a group"),
        (["--measures", "importance", "--effect", "cosine"], 2, "compares vectors"),
        (["--measures", "importance", "--draws", "0"], 2, "`--draws` must be at least 1, got 0"),
        (
            ["--measures", "importance", "--ablation", "resample", "--limit", "3"],
            1,
            "must have at least 6 examples, got 3",
        ),
        (["--measures", "importence"], 2, "Costly groups: importance, keep_one"),
    ],
)
def test_what_was_asked_wrongly_is_one_sentence(arguments, code, sentence, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main(["score", "repeat-lm", *arguments, *out]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_missing_and_impossible_labels_are_sentences(pictures, tmp_path, capsys):
    out = ["--measures", "importance", "--out", str(tmp_path / "run")]
    vit = ["score", "shapes-vit", "--data"]
    assert main([*vit, str(pictures), "--effect", "probability", *out]) == 2
    assert "the data has no 'label'" in capsys.readouterr().err
    lines = [{"image": f"pictures/{i}.png", "label": label} for i, label in enumerate([3, 99, 1])]
    data = tmp_path / "labels.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    assert main([*vit, str(data), *out]) == 1
    assert "must be a class of the model (0 to 15: circle" in capsys.readouterr().err
    lines[1].pop("label")
    data.write_text("\n".join(json.dumps(line) for line in lines))
    assert main([*vit, str(data), *out]) == 1
    assert "must have a 'label' for this effect, it has none" in capsys.readouterr().err
    assert main([*vit, str(pictures), *out]) == 0
    assert "importance_jsd" in capsys.readouterr().out


def test_weights_that_overflow_name_the_layer(tmp_path, capsys):
    model = tiny_models.llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.fill_(1e38)
    folder = tiny_models.saved(tmp_path / "model", model, tiny_models.tokenizer())
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f\n\nthe cat sat on a mat .\n")
    out = ["--measures", "importance", "--out", str(tmp_path / "run")]
    assert main(["score", folder, "--data", str(text), *out]) == 1
    assert "language" in capsys.readouterr().err


def _without_bos():
    return Subject(tiny_models.llama(), tiny_models.tokenizer("left"))


def _with_one_word(folder):
    texts = {"e0": "the cat sat on a mat", "bare": "a", "e2": "a b c d", "e3": "j i"}
    data = folder / "texts.jsonl"
    lines = [{"id": name, "text": text} for name, text in texts.items()]
    data.write_text("\n".join(json.dumps(line) for line in lines))
    return str(data)


@pytest.mark.parametrize("size", [1, 4])
def test_a_text_without_a_word_to_predict_is_skipped_and_counted(size, tmp_path, monkeypatch):
    subject, data = _without_bos(), _with_one_word(tmp_path)
    how = Options("importance", batch_size=size, replicates=20)
    real, counted = Ablation.finish, []

    def finish(self, *arguments):
        counted.append((self.progress.of, self.progress.examples))
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Ablation, "finish", finish)
        run = score_run(subject, data, tmp_path / "run", how)
    assert counted == [("importance", 3)]
    assert [item["id"] for item in run.skipped] == ["bare"]
    assert run.manifest["n"] == 3
    with pytest.warns(UserWarning, match=r"Left out 1 of 4 examples: 'bare' must have a token"):
        table = score(subject, data, "importance", batch_size=size, replicates=20)
    assert set(table.frame["n"]) == {3}
    kept = table.frame.reset_index(drop=True)
    in_run = run.heads.frame.reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, in_run, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="'bare' cannot be scored: must have a token to predict"):
        score(subject, data, "importance", batch_size=size, strict=True)


def test_batches_lose_an_example_only_where_the_rest_can_be_made_again():
    subject, texts = _without_bos(), ["the cat sat on", "a", "b c d"]
    batch = subject.prepare(text=texts)
    with pytest.warns(UserWarning, match="Left out 1 of 3 examples: '1' must have"):
        table = score(subject, batch, "importance", ablation="zero", replicates=20)
    alone = subject.prepare(examples=[e for e in batch.examples if e.id != "1"])
    expected = score(subject, alone, "importance", ablation="zero", replicates=20)
    pd.testing.assert_frame_equal(table.frame, expected.frame, rtol=1e-4, atol=1e-6)
    # Prepared in another way than by default, or from tensors: nobody can leave one out of it.
    padded = subject.prepare(text=texts, padding_side="right")
    names = ("input_ids", "attention_mask")
    tensors = subject.prepare(**{name: batch.tensors[name] for name in names})
    for given in (padded, tensors):
        with pytest.raises(ValueError, match="'1:1' must have a token to predict, it has none"):
            score(subject, [subject.prepare(text=texts[0]), given], "importance")
    one = subject.prepare(text=["a"])
    with pytest.warns(UserWarning, match="Left out 1 of 2 examples: '1:0' must have"):
        score(subject, [subject.prepare(text=texts[0]), one], "importance", replicates=20)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_an_estimate_of_studies_runs_and_writes_nothing(size, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--measures", "importance", "--ablation", "resample", "--dry-run"]
    assert main(["score", "repeat-lm", *arguments, "--batch-size", str(size)]) == 0
    assert "Nothing was written." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_no_example_that_can_be_read_says_why(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "x.png").write_bytes(b"no picture")
    arguments = ["--measures", "importance", "--out", str(tmp_path / "run")]
    assert main(["score", "shapes-vit", "--data", str(folder), *arguments]) == 1
    assert "does not decode" in capsys.readouterr().err


def _repeats(count):
    """Id -> text."""
    from probes.readers import read_examples

    found = read_examples("repeats", "language", count)
    return {example.id: f"{example.text} {example.answer}" for example in found}
