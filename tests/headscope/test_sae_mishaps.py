"""`headscope sae` where model, data or folder are not as they should be."""

import json
import shutil

import pytest
import torch
from PIL import Image

from headscope.cli import main
from probes.bundled import bundled_models

SMALL = ["--latents", "67", "--k", "3", "--tokens", "1000", "--rows", "250", "--buffer", "500"]
TEXT = ["sae", "train", "repeat-lm", "--sites", "language.L1", "--limit", "30", *SMALL]


def fails(capsys, arguments, code):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    (line,) = said.err.strip().splitlines()
    return line


def test_a_model_that_is_broken_is_not_a_question_asked_wrongly(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(bundled_models()["repeat-lm"].path, folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.layers.1.self_attn.v_proj.weight"][2, 3] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    train = ["sae", "train", str(folder), "--sites", "language.L1", "--data", "repeats", *SMALL]
    line = fails(capsys, [*train, "--out", str(tmp_path / "out")], 1)
    assert "hold NaN or infinity in language layer 1" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("store", [False, True])
def test_what_was_left_out_of_a_training_is_said(tmp_path, store, capsys):
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number:02d}.png")
    cut = tmp_path / "05.png"
    cut.write_bytes(cut.read_bytes()[:200])
    lines = [{"id": f"image-{n:02d}", "image": f"{n:02d}.png"} for n in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = ["sae", "train", "shapes-vit", "--sites", "vision.L1", "--held-out", "0", *SMALL]
    train += ["--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*train, "--store", str(tmp_path / "store")] if store else train) == 0
    said = capsys.readouterr()
    (line,) = (line for line in said.err.splitlines() if "left out" in line)
    assert "1 example was left out; 'image-05': " in line and "does not decode" in line
    assert "Judge it" in said.out


def test_a_sweep_leaves_a_folder_with_something_else_alone(tmp_path, capsys):
    swept = [*TEXT, "--held-out", "0.2", "--sweep", "k=2,3"]
    taken, file = tmp_path / "taken", tmp_path / "file"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    file.write_text("mine")
    line = fails(capsys, [*swept, "--out", str(taken)], 1)
    assert "holds something else (notes.txt)" in line and "nothing was touched" in line
    assert [item.name for item in taken.iterdir()] == ["notes.txt"]
    assert "must be a folder" in fails(capsys, [*swept, "--out", str(file)], 1)
    assert file.read_text() == "mine"


def test_many_epochs_are_written_as_a_number(capsys):
    assert main([*TEXT, "--tokens", "5M", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "times through the data" in out and "e+" not in out


@pytest.mark.parametrize("verb", [["evaluate", "repeat-lm"], TEXT[1:]])
def test_ctrl_c_where_there_is_nothing_to_go_on_with_is_said_too(verb, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("probes.loading.load", stopped)
    assert fails(capsys, ["sae", *verb], 130) == "Interrupted."
