"""`headscope sae`: what it prints, what it writes, how it fails, how it goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from headscope.cli import main
from sae import load_coder

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--latents", "67", "--k", "3", "--tokens", "1500", "--rows", "250", "--buffer", "500"]
TRAIN = ["sae", "train", "repeat-lm", "--sites", "language.L1", "--limit", "30", *SMALL]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("coders") / "run"
    command = ["sae", "train", "repeat-lm", "--sites", "language.*", "--limit", "30", *SMALL]
    command += ["--held-out", "0.3"]
    assert main([*command, "--out", str(out)]) == 0
    return out


def fails(capsys, arguments, code):
    """Exit code as expected, nothing on stdout, one line without a traceback on stderr."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    (line,) = said.err.strip().splitlines()
    return line


def test_train_makes_a_coder_of_each_site(trained, capsys):
    for site in ("language.L0", "language.L1"):
        coder = load_coder(trained / site)
        assert (coder.width, coder.latents, coder.about["site"]) == (128, 67, site)
        assert coder.about["provenance"]["data"]["held_out"] == 0.3
    one = ["--held-out", "0.3", "--out", str(trained.parent / "one")]
    assert main([*TRAIN, *one, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["coders"]["language.L1"]
    assert found["latents"] == 67 and found["last"]["step"] == found["last"]["steps"] == 6
    assert "step 6 of 6, 1,500 tokens" in said.err
    one = load_coder(trained.parent / "one" / "language.L1")
    assert torch.equal(one.decoder, load_coder(trained / "language.L1").decoder)


def test_evaluate_judges_every_coder_beside_baselines(trained, capsys):
    assert main(["sae", "evaluate", str(trained), "--limit", "30"]) == 0
    out = capsys.readouterr().out
    assert "language.L0: topk, 67 latents at language.L0, judged on" in out
    assert "language.L1: topk, 67 latents at language.L1, judged on" in out
    rows = re.findall(r"^ (trained|random dictionary|PCA|untrained) +3\.0 ", out, re.M)
    assert len(rows) == 8
    assert len(re.findall(r"^ (?:trained|PCA) .*\d\.\d{3} \[-?\d", out, re.M)) == 4
    assert max(map(len, out.splitlines())) <= 132
    arguments = ["--site", "language.L1", "--baselines", "none", "--json", "--limit", "30"]
    assert main(["sae", "evaluate", str(trained), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["site"] == "language.L1" and [line["kind"] for line in found["lines"]] == [
        "trained"
    ]


def test_attribute_tells_a_feature_and_a_head(capsys):
    assert main(["sae", "attribute", "repeat-lm", "--latent", "1012", "--examples", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Latent 1012 of language.L1: fires at ")
    assert len(re.findall(r"^    from »t00« ", out, re.M)) == 2
    assert "\nSpeaks for t00 +" in out
    assert main(["sae", "attribute", "repeat-lm", "--head", "language.L1H3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["head"] == "language.L1H3" and len(found["features"]) == 5


def test_attribute_draws_pages(tmp_path, capsys):
    there = tmp_path / "figures"
    arguments = ["--latent", "739", "--examples", "1", "--limit", "6", "--figures", str(there)]
    assert main(["sae", "attribute", "shapes-llava", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    (example,) = json.loads(said.out)["examples"]
    assert sorted(path.name for path in there.iterdir()) == [
        f"language.L2-latent-739-01-{example['example']}.html",
        "language.L2-latent-739-heads.html",
    ]
    assert said.err.startswith(f"Wrote 2 pages to {there}: language.L2-latent-739-heads.html")
    taken = tmp_path / "file"
    taken.write_text("mine")
    arguments = ["sae", "attribute", "repeat-lm", "--figures", str(taken)]
    assert "is a file. Give another" in fails(capsys, [*arguments, "--latent", "3"], 2)
    assert "`--figures` needs `--latent`" in fails(
        capsys, [*arguments, "--head", "language.L1H3"], 2
    )


def test_export_and_back(trained, tmp_path, capsys):
    there, back = tmp_path / "saelens", tmp_path / "ours"
    source = str(trained / "language.L1")
    assert main(["sae", "export", source, "--to", "saelens", "--out", str(there)]) == 0
    assert capsys.readouterr().out == f"Wrote cfg.json, sae_weights.safetensors to {there}.\n"
    assert main(["sae", "export", str(there), "--to", "headscope", "--out", str(back)]) == 0
    capsys.readouterr()
    x = torch.randn(11, 128, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(load_coder(back)(x), load_coder(source)(x), atol=1e-5)
    line = fails(capsys, ["sae", "export", source, "--to", "saelens", "--out", str(there)], 1)
    assert "nothing was touched" in line


def test_sweep_prints_a_pareto_table(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main([*TRAIN, "--held-out", "0.2", "--sweep", "k=2,5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ \* k=5 +5\.0 ", said, re.M)
    assert re.search(r"^ +PCA of k=2 +2\.0 ", said, re.M)
    assert (out / "pareto.parquet").is_file() and (out / "training" / "k=2").is_dir()


def test_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "language.L1  width 128 (8 heads), 67 latents" in out
    assert out.endswith("Nothing was written.\n") and not list(tmp_path.iterdir())


ASKED_WRONGLY = [
    (["--sites", "language.L9"], "has layers 0 to 1 in language"),
    (
        ["--k", "129", "--latents", "2x"],
        "`k` must be between 1 and the width of the site, 128, got 129",
    ),
    (["--k", "68"], "`latents` must be at least `k`, 68, got 67"),
    (["--tokens", "100"], "`tokens` must be at least the 250 rows of one step, got 100"),
    (["--tokens", "5x"], "An amount must be written like 5M"),
    (["--coder", "bottle"], "`coder` must be one of batch_topk, gated"),
    (["--roles", "nose"], "`roles` must be some of bos"),
    (["--buffer", "100"], "`--buffer` must be at least `--rows`, 250, got 100"),
    (["--sweep", "seed=1,2"], "`--sweep` must be one of k, latents"),
    (["--resume"], "`--resume` needs `--out`"),
]


@pytest.mark.parametrize(("more", "sentence"), ASKED_WRONGLY)
def test_train_asked_wrongly(more, sentence, capsys):
    assert sentence in fails(capsys, [*TRAIN, *more], 2)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["evaluate", "nowhere"], 1, "A coder must be a folder, nowhere does not exist"),
        (["evaluate", "repeat-lm", "prose-lm"], 2, "must be the one that the coder was trained on"),
        (["evaluate", "repeat-lm", "--baselines", "x"], 2, "`--baselines` must be some of"),
        (["attribute", "repeat-lm"], 2, "Give either `--latent` or `--head`"),
        (["attribute", "repeat-lm", "--latent", "9999"], 2, "must be between 0 and 1023, got 9999"),
        (
            ["attribute", "repeat-lm", "--head", "language.L1H9"],
            2,
            "language.L1H0 to language.L1H7",
        ),
        (["export", "repeat-lm", "--to", "x", "--out", "o"], 2, "`--to` must be one of"),
    ],
)
def test_others_asked_wrongly(arguments, code, sentence, capsys):
    assert sentence in fails(capsys, ["sae", *arguments], code)


def test_too_few_rows_and_a_folder_that_is_taken(tmp_path, trained, capsys):
    # 4,096 rows in a step, and fewer in all the data: nothing but the plan is left behind.
    line = fails(
        capsys,
        ["sae", "train", "repeat-lm", "--sites", "language.L1", "--tokens", "5k", "--k", "3",
         "--limit", "30", "--latents", "67", "--out", str(tmp_path / "few")],
        1,
    )  # fmt: skip
    assert "4,096" in line or "4096" in line
    taken = fails(capsys, [*TRAIN, "--out", str(trained)], 1)
    assert "holds a finished training" in taken


def test_several_processes_need_a_folder_and_only_the_first_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "`--out` must be given to several processes" in fails(capsys, TRAIN, 2)
    monkeypatch.delenv("WORLD_SIZE")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ours = ["-m", "headscope", *TRAIN, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*command, *ours], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Judge it:") == 1
    assert ran.stderr.count("step 3 of 3") == 1  # 1,500 rows, 2 x 250 a step
    assert load_coder(tmp_path / "out" / "language.L1").latents == 67


def test_interrupted_and_gone_on_with_as_it_says(tmp_path):
    """SIGTERM in mid-training: 130, a command; that command ends with the same coder."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [*TRAIN, "--checkpoint-every", "20", "--log-every", "5", "--tokens", "100k"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(words):
        return subprocess.Popen(
            [sys.executable, "-m", "headscope", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    running = start([*arguments, "--out", str(out)])
    end = time.monotonic() + 60
    while not list(out.glob("checkpoint/*/whole.json")) and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert said[0] == ""
    match = re.search(r"Interrupted; \d+ steps are safe in .*, go on with: headscope (.*)", said[1])
    assert match, said[1]
    going_on = start(shlex.split(match[1]))
    said = going_on.communicate(timeout=120)
    assert going_on.returncode == 0, said[1]
    assert "Goes on from the checkpoint of step" in said[1]
    assert main([*arguments, "--out", str(whole)]) == 0
    first, second = (load_coder(folder / "language.L1") for folder in (out, whole))
    assert torch.equal(first.decoder, second.decoder) and torch.equal(first.encoder, second.encoder)
