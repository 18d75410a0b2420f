from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import LATENTS, WIDTH, drawn, reconstructed, rows, write_folder
from torch import Tensor

from sae.exchange.headscope_folder import save_coder
from sae.exchange.refusals import CoderFolderError
from sae.exchange.sparsify import read_sparsify

CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": LATENTS,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": WIDTH,
}


def _tensors() -> dict[str, Tensor]:
    return {
        "encoder.weight": drawn(LATENTS, WIDTH, seed=1),
        "encoder.bias": drawn(LATENTS, seed=2, size=0.5),
        "W_dec": drawn(LATENTS, WIDTH, seed=3),
        "b_dec": drawn(WIDTH, seed=4, size=0.5),
    }


def _folder(path: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value != "-"}
    weights = _tensors() if tensors is None else tensors
    return write_folder(path, ("cfg.json", config), "sae.safetensors", weights)


def test_a_coder_of_a_hookpoint_is_read(tmp_path):
    t = _tensors()
    read = read_sparsify(_folder(tmp_path / "layers.3.attn"))
    parts = (t["encoder.weight"], t["encoder.bias"], t["W_dec"], t["b_dec"])
    wanted = reconstructed(rows(), *parts, centred=True, k=3)
    assert (read(rows()) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert read.architecture == "topk" and not read.training
    about = read.about["exchange"]
    assert (about["format"], about["hookpoint"]) == ("sparsify", "layers.3.attn")
    assert about["config"] == CONFIG and "site" not in read.about
    save_coder(read, tmp_path / "ours")


def test_a_decoder_that_is_stored_the_other_way_round_is_turned(tmp_path):
    t = _tensors()
    read = read_sparsify(_folder(tmp_path, {**t, "W_dec": t["W_dec"].T}))
    assert torch.equal(read.decoder, t["W_dec"])


def test_a_square_is_asked_about(tmp_path):
    t = {**_tensors(), "encoder.weight": drawn(6, 6, seed=1), "W_dec": drawn(6, 6, seed=3)}
    folder = _folder(tmp_path, {**t, "encoder.bias": torch.zeros(6)}, num_latents=0)
    with pytest.raises(CoderFolderError, match=r"`encoder.weight` in .*`trust_layout=True`"):
        read_sparsify(folder)
    read = read_sparsify(folder, trust_layout=True)
    assert torch.equal(read.decoder, t["W_dec"])
    assert torch.equal(read.encoder, t["encoder.weight"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transcode": True}, r"`transcode` .* must be false, got true: .* output from its input"),
        ({"skip_connection": True}, r"`skip_connection` .* adds a linear map of its input"),
        ({"signed": True}, r"`signed` .* strengths of either sign"),
        ({"transcode": "yes"}, r"`transcode` .* must be true or false, got 'yes'"),
        ({"activation": "groupmax"}, r"`activation` in .* must be topk, got 'groupmax'"),
        ({"k": "-"}, r"`k` in .* must be a whole number from 1, got None"),
        ({"k": 12}, r"no coder: `k` must be between 1 and .* 11, got 12"),
        ({"d_in": "-"}, r"`d_in` in .* must be a whole number from 1, got None"),
        ({"d_in": 5}, r"`encoder.weight` in .* of the width, 5, got \[11, 6\]"),
    ],
)
def test_what_no_coder_of_ours_computes_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(CoderFolderError, match=sentence):
        read_sparsify(_folder(tmp_path, **changes))


def test_tensors_that_are_wrong_or_missing_are_named(tmp_path):
    t = _tensors()
    for index, (tensors, sentence) in enumerate(
        (
            ({"encoder.weight": t["encoder.weight"]}, r"`W_dec` is missing"),
            ({**t, "W_skip": torch.zeros(6, 6)}, r"and nothing else, it also has `W_skip`"),
            ({**t, "b_dec": torch.zeros(11)}, r"decoder bias in .* must be \[6\] .* got \[11\]"),
        )
    ):
        with pytest.raises(CoderFolderError, match=sentence):
            read_sparsify(_folder(tmp_path / str(index), tensors))
    (tmp_path / "0" / "sae.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CoderFolderError, match=r"sae.safetensors is damaged"):
        read_sparsify(tmp_path / "0")
    (tmp_path / "0" / "sae.safetensors").unlink()
    with pytest.raises(CoderFolderError, match=r"sae.safetensors is missing"):
        read_sparsify(tmp_path / "0")
