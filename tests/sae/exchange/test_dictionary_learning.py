from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import LATENTS, WIDTH, drawn, reconstructed, rows, write_folder
from torch import Tensor

from sae.coders.coder import Coder
from sae.exchange.dictionary_learning import read_dictionary_learning
from sae.exchange.headscope_folder import save_coder
from sae.exchange.refusals import CoderFolderError

ENCODER, DECODER = drawn(LATENTS, WIDTH, seed=1), drawn(LATENTS, WIDTH, seed=2)
ENCODER_BIAS = drawn(LATENTS, seed=3, size=0.5)
DECODER_BIAS = drawn(WIDTH, seed=4, size=0.5)
LINEAR = {"encoder.weight": ENCODER, "encoder.bias": ENCODER_BIAS, "decoder.weight": DECODER.T}
PLAIN = {"W_enc": ENCODER.T, "b_enc": ENCODER_BIAS, "W_dec": DECODER, "b_dec": DECODER_BIAS}
K, THRESHOLD = torch.tensor(3, dtype=torch.int), torch.tensor(0.4)
THRESHOLDS = drawn(LATENTS, seed=5).abs()
SIZES = torch.tensor([2, 4, 5])
CLASSES: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "AutoEncoder": ({**LINEAR, "bias": DECODER_BIAS}, {"centred": True}, "standard"),
    "AutoEncoderNew": ({**LINEAR, "decoder.bias": DECODER_BIAS}, {"centred": False}, "standard"),
    "JumpReluAutoEncoder": (
        {**PLAIN, "threshold": THRESHOLDS},
        {"centred": False, "threshold": THRESHOLDS},
        "jump_relu",
    ),
    "AutoEncoderTopK": (
        {**LINEAR, "b_dec": DECODER_BIAS, "k": K, "threshold": torch.tensor(50.0)},
        {"centred": True, "k": 3},
        "topk",
    ),
    "BatchTopKSAE": (
        {**LINEAR, "b_dec": DECODER_BIAS, "k": K, "threshold": THRESHOLD},
        {"centred": True, "threshold": 0.4},
        "batch_topk",
    ),
    "MatryoshkaBatchTopKSAE": (
        {**PLAIN, "k": K, "threshold": THRESHOLD, "group_sizes": SIZES},
        {"centred": True, "threshold": 0.4},
        "matryoshka",
    ),
}
GATED = {
    "decoder_bias": DECODER_BIAS,
    "encoder.weight": ENCODER,
    "r_mag": drawn(LATENTS, seed=6, size=0.3),
    "gate_bias": ENCODER_BIAS,
    "mag_bias": drawn(LATENTS, seed=7, size=0.5),
    "decoder.weight": DECODER.T,
}


def _folder(path: Path, name: Any, state: Any, **trainer: Any) -> Path:
    said = {"activation_dim": WIDTH, "dict_size": LATENTS, "dict_class": name, "k": 7}
    said |= {"lm_name": "EleutherAI/pythia-70m-deduped", "layer": 3, **trainer}
    config = {"trainer": {n: v for n, v in said.items() if v != "-"}, "buffer": {"ctx_len": 128}}
    return write_folder(path, ("config.json", config), "ae.pt", state)


def _same(coder: Coder, wanted: Tensor) -> None:
    assert (coder(rows()) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_is_read(tmp_path, name):
    state, parts, kind = CLASSES[name]
    read = read_dictionary_learning(_folder(tmp_path / "a", name, state))
    parameters = (ENCODER, ENCODER_BIAS, DECODER, DECODER_BIAS)
    _same(read, reconstructed(rows(), *parameters, **parts))
    assert read.architecture == kind and not read.training
    assert read.about["subject"] == {"name": "EleutherAI/pythia-70m-deduped"}
    assert read.about["exchange"]["format"] == "dictionary_learning"
    assert read.about["exchange"]["config"]["buffer"] == {"ctx_len": 128}
    save_coder(read, tmp_path / "ours")


def test_gated_coders_are_read(tmp_path):
    read = read_dictionary_learning(_folder(tmp_path, "GatedAutoEncoder", GATED))
    made = []
    for row in rows():
        seen = ENCODER @ (row - DECODER_BIAS)
        out = DECODER_BIAS.clone()
        for i in range(LATENTS):
            size = GATED["r_mag"][i].exp() * seen[i] + GATED["mag_bias"][i]
            if seen[i] + ENCODER_BIAS[i] > 0 and size > 0:
                out += size * DECODER[i]
        made.append(out)
    _same(read, torch.stack(made))


def test_the_numbers_of_the_file_go_before_those_of_the_settings(tmp_path):
    """`config.json` is written before the training, where k may still be higher."""
    state, _, _ = CLASSES["MatryoshkaBatchTopKSAE"]
    read = read_dictionary_learning(_folder(tmp_path / "a", "MatryoshkaBatchTopKSAE", state))
    assert read.settings["k"] == 3
    assert read.prefixes == (2, 6, 11)
    state = {name: v for name, v in CLASSES["AutoEncoderTopK"][0].items() if name != "k"}
    read = read_dictionary_learning(_folder(tmp_path / "b", "AutoEncoderTopK", state))
    assert read.settings["k"] == 7


def test_before_its_first_step_a_batch_coder_lets_all_positive_through(tmp_path):
    state = {**CLASSES["BatchTopKSAE"][0], "threshold": torch.tensor(-1.0)}
    read = read_dictionary_learning(_folder(tmp_path, "BatchTopKSAE", state))
    parameters = (ENCODER, ENCODER_BIAS, DECODER, DECODER_BIAS)
    _same(read, reconstructed(rows(), *parameters, centred=True))


@pytest.mark.parametrize("name", ["JumpReluAutoEncoder", "BatchTopKSAE", "AutoEncoderTopK"])
def test_a_backup_of_an_unfinished_training_is_put_into_units_of_the_model(tmp_path, name):
    state, parts, _ = CLASSES[name]
    backup = {
        "step": 700,
        "ae": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
        "config": {"dict_class": name},
        "norm_factor": 2.5,
    }
    read = read_dictionary_learning(_folder(tmp_path / "a", name, backup))
    parameters = (ENCODER, ENCODER_BIAS, DECODER, DECODER_BIAS)
    _same(read, 2.5 * reconstructed(rows() / 2.5, *parameters, **parts))
    folder = _folder(tmp_path / "b", name, {**backup, "norm_factor": 0.0})
    with pytest.raises(CoderFolderError, match=r"`norm_factor` .* must be a number above 0"):
        read_dictionary_learning(folder)


def test_matrices_are_turned_by_their_shapes(tmp_path):
    state = {**CLASSES["AutoEncoderTopK"][0], "encoder.weight": ENCODER.T}
    state["decoder.weight"] = DECODER
    read = read_dictionary_learning(_folder(tmp_path / "a", "AutoEncoderTopK", state))
    assert torch.equal(read.encoder, ENCODER) and torch.equal(read.decoder, DECODER)
    square = {**CLASSES["JumpReluAutoEncoder"][0], "W_enc": ENCODER[:6], "W_dec": DECODER[:6]}
    square |= {"b_enc": torch.zeros(6), "threshold": torch.zeros(6)}
    folder = _folder(tmp_path / "b", "JumpReluAutoEncoder", square)
    with pytest.raises(CoderFolderError, match=r"`W_(enc|dec)` in .*`trust_layout=True`"):
        read_dictionary_learning(folder)
    read = read_dictionary_learning(folder, trust_layout=True)
    assert torch.equal(read.encoder, ENCODER[:6].T) and torch.equal(read.decoder, DECODER[:6])


class _Wicked:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path):
    state = {**CLASSES["AutoEncoder"][0], "extra": _Wicked(tmp_path / "broken in")}
    folder = _folder(tmp_path / "a", "AutoEncoder", state)
    with pytest.raises(CoderFolderError, match=r"tensors alone, it asks for \w+\.mkdir to be run"):
        read_dictionary_learning(folder)
    assert not (tmp_path / "broken in").exists()
    # The test can fail: the file does what it says when it is let.
    torch.load(folder / "ae.pt", weights_only=False)
    assert (tmp_path / "broken in").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"PK\x03\x04 half a zip", b"\x80\x02}q\x00."])
def test_damaged_files_are_a_sentence(tmp_path, content):
    folder = _folder(tmp_path, "AutoEncoder", CLASSES["AutoEncoder"][0])
    (folder / "ae.pt").write_bytes(content)
    with pytest.raises(CoderFolderError, match=r"ae.pt (is damaged|must hold)"):
        read_dictionary_learning(folder)
    (folder / "ae.pt").unlink()
    with pytest.raises(CoderFolderError, match=r"ae.pt is missing"):
        read_dictionary_learning(folder)


@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        ({"dict_class": "CrossCoder"}, r"`dict_class` .* one of AutoEncoder, .* got 'CrossCoder'"),
        ({"dict_class": "-"}, r"`dict_class` .* got None. Use dictionary_learning"),
        ({"dict_class": ["AutoEncoder"]}, r"`dict_class` .* got \['AutoEncoder'\]"),
        ({"activation_dim": 7}, r"`(en|de)coder.weight` in .* of the width, 7, got"),
        ({"activation_dim": "-"}, r"`activation_dim` .* must be a whole number from 1, got None"),
    ],
)
def test_settings_that_are_wrong_are_a_sentence(tmp_path, trainer, sentence):
    folder = _folder(tmp_path, "AutoEncoder", CLASSES["AutoEncoder"][0], **trainer)
    with pytest.raises(CoderFolderError, match=sentence):
        read_dictionary_learning(folder)


def test_tensors_and_files_that_are_wrong_are_named(tmp_path):
    state, _, _ = CLASSES["MatryoshkaBatchTopKSAE"]
    for index, (changes, sentence) in enumerate(
        (
            ({"threshold": None}, r"`threshold` is missing"),
            ({"gate_bias": torch.zeros(11)}, r"and nothing else, it also has `gate_bias`"),
            ({"group_sizes": None}, r"`group_sizes` in .* sizes of groups, got None"),
            ({"group_sizes": torch.tensor([0, 11])}, r"no coder: `group_shares` must be positive"),
            ({"threshold": THRESHOLDS}, r"The threshold in .* must be \[\] .* got \[11\]"),
            ({"k": torch.tensor(12)}, r"no coder: `k` must be between 1 and .* 11, got 12"),
            ({"k": torch.tensor([1, 2])}, r"`k` in .* must be one whole number, got \[2\]"),
            ({"b_dec": DECODER_BIAS * torch.inf}, r"finite numbers, `decoder_bias` has"),
        )
    ):
        found = {name: v for name, v in {**state, **changes}.items() if v is not None}
        folder = _folder(tmp_path / str(index), "MatryoshkaBatchTopKSAE", found)
        with pytest.raises(CoderFolderError, match=sentence):
            read_dictionary_learning(folder)
    folder = tmp_path / "0"
    torch.save([1, 2], folder / "ae.pt")
    with pytest.raises(CoderFolderError, match=r"ae.pt must hold tensors by name"):
        read_dictionary_learning(folder)
    (folder / "config.json").write_text('{"buffer": {}}')
    with pytest.raises(CoderFolderError, match=r"`trainer` in .* must be an object, got None"):
        read_dictionary_learning(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CoderFolderError, match=r"config.json is missing"):
        read_dictionary_learning(folder)
