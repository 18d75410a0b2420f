from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_folders import (
    ABOUT,
    LATENTS,
    OPTIONS,
    WIDTH,
    drawn,
    random_coder,
    reconstructed,
    rows,
    write_folder,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.registry import CODERS
from sae.exchange.headscope_folder import save_coder
from sae.exchange.refusals import CoderFolderError
from sae.exchange.saelens import read_density, read_saelens, write_saelens
from sae.exchange.saelens.writing import hook_name

METADATA = {"sae_lens_version": "6.54.12", "hook_name": "blocks.5.attn.hook_z"}
CONFIG: dict[str, Any] = {
    "architecture": "standard",
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "hook_z",
    "metadata": METADATA,
}


def _tensors(**more: Tensor) -> dict[str, Tensor]:
    return {
        "W_enc": drawn(WIDTH, LATENTS, seed=1),
        "W_dec": drawn(LATENTS, WIDTH, seed=2),
        "b_enc": drawn(LATENTS, seed=3, size=0.5),
        "b_dec": drawn(WIDTH, seed=4, size=0.5),
        **more,
    }


def _folder(path: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    config = {name: value for name, value in {**CONFIG, **changes}.items() if value != "-"}
    weights = _tensors() if tensors is None else tensors
    return write_folder(path, ("cfg.json", config), "sae_weights.safetensors", weights)


def _same(coder: Coder, wanted: Tensor) -> None:
    assert (coder(rows()) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", sorted(CODERS))
def test_every_kind_comes_back_and_computes_the_same(tmp_path, kind, centred):
    coder = random_coder(kind, centred=centred)
    assert write_saelens(coder, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    read = read_saelens(tmp_path / "a" / "b")
    used = coder.as_used()
    assert type(read) is type(used) and read.centred == centred and read.about == ABOUT
    assert (read.encode(rows()) - used.encode(rows())).abs().max() < 1e-6
    # Relative: rows of another length round otherwise.
    assert (read(rows()) - coder(rows())).abs().max() < 1e-6 * coder(rows()).abs().max()
    assert (read(rows()) - read.decoder_bias).abs().amax() > 0.1
    assert not read.training and not any(p.requires_grad for p in read.parameters())
    if used.architecture == kind:
        assert read.settings == coder.settings


def test_the_files_are_laid_out_as_saelens_documents(tmp_path):
    coder = random_coder("topk")
    write_saelens(coder, tmp_path, density=torch.full((LATENTS,), 0.01))
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: list(value.shape) for name, value in tensors.items()} == {
        "W_enc": [WIDTH, LATENTS],
        "W_dec": [LATENTS, WIDTH],
        "b_enc": [LATENTS],
        "b_dec": [WIDTH],
    }
    assert torch.equal(tensors["W_enc"].T, coder.encoder)
    assert torch.equal(tensors["W_dec"], coder.decoder)
    found = json.loads((tmp_path / "cfg.json").read_text())
    metadata = found.pop("metadata")
    assert found == {
        **{name: value for name, value in CONFIG.items() if name != "metadata"},
        "architecture": "topk",
        "k": 3,
        "rescale_acts_by_decoder_norm": False,
    }
    assert metadata.pop("headscope")["about"] == ABOUT
    assert metadata == {
        "sae_lens_version": "6.54.12",
        "sae_lens_training_version": None,
        "hook_name": "blocks.2.attn.hook_z",
        "hook_head_index": None,
        "model_name": "größer",
        "tower": "language",
        "layer": 2,
        "heads": 3,
        "head_width": 2,
    }
    sparsity = load_file(tmp_path / "sparsity.safetensors")
    assert sparsity.keys() == {"sparsity"}
    assert torch.allclose(sparsity["sparsity"], torch.full((LATENTS,), -2.0))


@pytest.mark.parametrize(
    ("site", "hook", "reshape"),
    [
        ("language.L0", "blocks.0.attn.hook_z", "hook_z"),
        ("vision.L11", "vision.blocks.11.attn.hook_z", "hook_z"),
        ("input", None, "none"),
    ],
)
def test_each_tower_has_hooks_of_its_own(tmp_path, site, hook, reshape):
    assert hook_name(site) == hook
    write_saelens(random_coder("gated", about={"site": site}), tmp_path)
    found = json.loads((tmp_path / "cfg.json").read_text())
    assert (found["metadata"]["hook_name"], found["reshape_activations"]) == (hook, reshape)
    assert read_saelens(tmp_path).about == {"site": site}


def test_metadata_can_be_added_but_not_the_version_lowered(tmp_path):
    more = {"context_size": 128, "module_path": "a.b", "sae_lens_version": "5.0.0"}
    write_saelens(random_coder("standard"), tmp_path, metadata={**more, "hook_name": "mine_z"})
    found = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (found["context_size"], found["module_path"]) == (128, "a.b")
    assert (found["sae_lens_version"], found["hook_name"]) == ("6.54.12", "mine_z")


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (
            {"hook_name": "blocks.0.hook_resid_pre"},
            r"`hook_name` must end in _z, .*hook_resid_pre'",
        ),
        ({"hook_name": 3}, r"`hook_name` must end in _z, .* got 3"),
        ({"context_size": {1, 2}}, r"`about` and `metadata` must be values of JSON"),
        ({"loss": float("nan")}, r"`about` and `metadata` must be values of JSON"),
    ],
)
def test_metadata_that_saelens_could_not_read_is_a_sentence(tmp_path, metadata, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_saelens(random_coder("topk"), tmp_path / "a", metadata=metadata)
    assert not (tmp_path / "a").exists()


def test_shares_come_back_and_what_is_none_is_a_sentence(tmp_path):
    density = torch.rand(LATENTS, generator=torch.Generator().manual_seed(1))
    density[4] = 0
    write_saelens(random_coder("topk"), tmp_path / "a", density=density)
    found = read_density(tmp_path / "a")
    assert found is not None and (found - density).abs().max() < 1e-6 and found[4] == 0
    assert load_file(tmp_path / "a" / "sparsity.safetensors")["sparsity"][4] == -10
    write_saelens(random_coder("topk"), tmp_path / "a", replace=True)
    assert read_density(tmp_path / "a") is None
    for wrong, sentence in (
        (density[1:], rf"an entry for each of {LATENTS} latents, got \[{LATENTS - 1}\]"),
        (density * 100, r"must be shares from 0 to 1, got 0.0 to"),
        (density * torch.nan, r"must be shares from 0 to 1, got nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            write_saelens(random_coder("topk"), tmp_path / "b", density=wrong)
    assert not (tmp_path / "b").exists()


def test_float64_stays_and_shorter_types_become_float32(tmp_path):
    coder = random_coder("jump_relu").double()
    write_saelens(coder, tmp_path / "a")
    read = read_saelens(tmp_path / "a")
    assert read.decoder.dtype == torch.float64
    assert torch.equal(read(rows().double()), coder(rows().double()))
    half = {name: value.bfloat16() for name, value in _tensors().items()}
    read = read_saelens(_folder(tmp_path / "b", half, dtype="bfloat16"))
    assert read.decoder.dtype == torch.float32
    assert torch.equal(read.decoder, half["W_dec"].float())


def test_what_saelens_saved_is_read_with_its_site_model_and_entries(tmp_path):
    t = _tensors()
    for centred in (True, False):
        folder = _folder(
            tmp_path / str(centred),
            apply_b_dec_to_input=centred,
            metadata={**METADATA, "model_name": "gpt2-small", "l0": float("nan")},
        )
        read = read_saelens(folder)
        wanted = reconstructed(
            rows(), t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], centred=centred
        )
        _same(read, wanted)
        assert read.architecture == "standard" and read.centred == centred
        assert read.about["site"] == "language.L5"
        assert read.about["subject"] == {"name": "gpt2-small"}
        assert read.about["exchange"]["format"] == "saelens"
        assert read.about["exchange"]["config"]["metadata"]["l0"] is None
        save_coder(read, tmp_path / f"{centred} ours")


def test_a_coder_of_another_hook_names_no_site(tmp_path):
    folder = _folder(tmp_path, metadata={**METADATA, "hook_name": "blocks.5.hook_resid_pre"})
    assert "site" not in read_saelens(folder).about


def test_topk_that_compares_by_lengths_is_read_with_lengths_folded(tmp_path):
    t = _tensors()
    t["W_dec"] = t["W_dec"] * torch.linspace(0.2, 3.0, LATENTS)[:, None]
    lengths = t["W_dec"].norm(dim=1)
    plain = read_saelens(_folder(tmp_path / "a", t, architecture="topk", k=2))
    folded = read_saelens(
        _folder(tmp_path / "b", t, architecture="topk", k=2, rescale_acts_by_decoder_norm=True)
    )
    parts = {"centred": True, "k": 2}
    _same(plain, reconstructed(rows(), t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], **parts))
    wanted = reconstructed(
        rows(),
        t["W_enc"].T * lengths[:, None],
        t["b_enc"] * lengths,
        t["W_dec"] / lengths[:, None],
        t["b_dec"],
        **parts,
    )
    _same(folded, wanted)
    assert (plain(rows()) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_checkpoints_of_batch_kinds_come_as_jump_relu(tmp_path, architecture):
    t = _tensors()
    threshold = torch.tensor(0.7, dtype=torch.float64)
    folder = _folder(
        tmp_path / "a",
        {**t, "topk_threshold": threshold},
        architecture=architecture,
        k=2.5,
        rescale_acts_by_decoder_norm=False,
    )
    coder = read_saelens(folder)
    assert coder.architecture == "jump_relu"
    parts = {"centred": True, "threshold": 0.7}
    _same(coder, reconstructed(rows(), t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], **parts))
    # By default strengths are in units of decoder rows, the threshold too.
    lengths = t["W_dec"].norm(dim=1)
    folder = _folder(
        tmp_path / "b", {**t, "topk_threshold": threshold}, architecture=architecture, k=2
    )
    wanted = reconstructed(
        rows(),
        t["W_enc"].T * lengths[:, None],
        t["b_enc"] * lengths,
        t["W_dec"] / lengths[:, None],
        t["b_dec"],
        **parts,
    )
    _same(read_saelens(folder), wanted)


def test_thresholds_and_their_logarithms_are_read(tmp_path):
    t = _tensors()
    threshold = drawn(LATENTS, seed=7).abs()
    wanted = reconstructed(
        rows(), t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], centred=True, threshold=threshold
    )
    for name, value in (("threshold", threshold), ("log_threshold", threshold.log())):
        folder = _folder(tmp_path / name, {**t, name: value}, architecture="jumprelu")
        _same(read_saelens(folder), wanted)


def test_the_factor_of_rows_that_a_checkpoint_keeps_beside_is_folded(tmp_path):
    """SAELens: x times the factor is coded, the reconstruction divided by it."""
    t = _tensors()
    threshold = drawn(LATENTS, seed=7).abs()
    folder = _folder(
        tmp_path / "a",
        {**t, "threshold": threshold},
        architecture="jumprelu",
        normalize_activations="expected_average_only_in",
    )
    with pytest.raises(CoderFolderError, match=r"must be none where the factor of the rows"):
        read_saelens(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    parts = (t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"])
    wanted = reconstructed(2.5 * rows(), *parts, centred=True, threshold=threshold) / 2.5
    _same(read_saelens(folder), wanted)
    lengths = t["W_dec"].norm(dim=1)
    of_batches = _folder(
        tmp_path / "b",
        {**t, "topk_threshold": torch.tensor(1.5)},
        architecture="batchtopk",
        normalize_activations="expected_average_only_in",
    )
    (of_batches / "activation_scaler.json").write_text('{"scaling_factor": 2.5}')
    wanted = reconstructed(
        2.5 * rows(),
        t["W_enc"].T * lengths[:, None],
        t["b_enc"] * lengths,
        t["W_dec"] / lengths[:, None],
        t["b_dec"],
        centred=True,
        threshold=1.5,
    )
    _same(read_saelens(of_batches), wanted / 2.5)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(CoderFolderError, match=r"must be a number above 0, got None"):
        read_saelens(folder)


LEGACY: dict[str, Any] = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.9.attn.hook_z",
    "hook_point_layer": 9,
    "d_in": WIDTH,
    "d_sae": LATENTS,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": False,
    "normalize_activations": False,
    "prepend_bos": True,
}


def _legacy(path: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    weights = _tensors() if tensors is None else tensors
    config = {name: value for name, value in {**LEGACY, **changes}.items() if value != "-"}
    return write_folder(path, ("cfg.json", config), "sae_weights.safetensors", weights)


def test_flat_files_from_before_version_6_are_read(tmp_path):
    t = _tensors()
    parts = (rows(), t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"])
    read = read_saelens(_legacy(tmp_path / "a", {**t, "scaling_factor": torch.ones(LATENTS)}))
    _same(read, reconstructed(*parts, centred=False))
    assert read.about["site"] == "language.L9" and not read.centred
    settings = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    read = read_saelens(_legacy(tmp_path / "b", apply_b_dec_to_input="-", **settings))
    assert read.settings["k"] == 2
    _same(read, reconstructed(*parts, centred=True, k=2))
    old = {"sae_lens_version": "5.10.1", "architecture": "jumprelu", "hook_name": "x"}
    read = read_saelens(_legacy(tmp_path / "c", {**t, "threshold": t["b_enc"].abs()}, **old))
    _same(read, reconstructed(*parts, centred=False, threshold=t["b_enc"].abs()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation_fn_str": "tanh-relu"}, r"`activation_fn` .* relu, topk .* got 'tanh-relu'"),
        ({"activation_fn_str": "topk"}, r"`k` .* must be a whole number from 1, got None"),
        ({"normalize_activations": True}, r"must be none where the factor of the rows is not"),
        ({"normalize_activations": "layer_norm"}, r"must be one of none, .* got 'layer_norm'"),
        ({"d_in": "-"}, r"`d_in` .* must be a whole number from 1, got None"),
    ],
)
def test_flat_files_that_say_something_else_are_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(CoderFolderError, match=sentence):
        read_saelens(_legacy(tmp_path, **changes))


def test_factors_of_fine_tuning_are_a_sentence(tmp_path):
    with pytest.raises(CoderFolderError, match=r"`scaling_factor` in .* must be all ones"):
        read_saelens(_legacy(tmp_path, _tensors(scaling_factor=torch.full((LATENTS,), 2.0))))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "matching_pursuit"}, r"`architecture` .* one of standard, .* got 'match"),
        ({"architecture": "skip_transcoder"}, r"`architecture` .* Use SAELens for this one"),
        ({"architecture": "-"}, r"lacks `architecture`"),
        ({"architecture": ["topk"]}, r"`architecture` .* got \['topk'\]"),
        ({"architecture": "topk"}, r"`k` .* must be a whole number from 1, got None"),
        ({"architecture": "topk", "k": 2.5}, r"`k` .* must be a whole number from 1, got 2.5"),
        ({"architecture": "topk", "k": 12}, r"no coder: `k` must be between 1 and .* 11, got 12"),
        ({"d_in": 7}, r"`W_enc` in .* with an axis of the width, 7, got \[6, 11\]"),
        ({"d_in": True}, r"`d_in` .* must be a whole number from 1, got True"),
        ({"normalize_activations": "covariance_whitening"}, r"got 'covariance_whitening'"),
        ({"reshape_activations": "hook_q"}, r"`reshape_activations` .* got 'hook_q'"),
        ({"apply_b_dec_to_input": "no"}, r"must be true or false, got 'no'"),
        ({"metadata": [1]}, r"`metadata` in .* must be an object, got \[1\]"),
    ],
)
def test_a_description_that_is_wrong_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(CoderFolderError, match=sentence):
        read_saelens(_folder(tmp_path, **changes))


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"b_enc": None}, r"must hold W_dec, W_enc, b_dec, b_enc; `b_enc` is missing"),
        ({"W_skip": torch.zeros(6, 6)}, r"and nothing else, it also has `W_skip`"),
        ({"threshold": torch.zeros(11)}, r"and nothing else, it also has `threshold`"),
        ({"b_dec": torch.zeros(5)}, r"The decoder bias in .* must be \[6\] .* got \[5\]"),
        ({"W_enc": torch.zeros(6, 7)}, r"The encoder in .* must be \[11, 6\] .* got \[7, 6\]"),
        ({"W_dec": torch.zeros(11)}, r"`W_dec` in .* must be a matrix .* got \[11\]"),
        ({"W_dec": torch.full((11, 6), torch.nan)}, r"must hold finite numbers, `decoder` has"),
    ],
)
def test_tensors_that_are_wrong_are_named(tmp_path, tensors, sentence):
    found = {name: v for name, v in {**_tensors(), **tensors}.items() if v is not None}
    with pytest.raises(CoderFolderError, match=sentence):
        read_saelens(_folder(tmp_path, found))


def test_matrices_that_are_stored_the_other_way_round_are_turned(tmp_path):
    t = _tensors()
    turned = {**t, "W_enc": t["W_enc"].T, "W_dec": t["W_dec"].T}
    read = read_saelens(_folder(tmp_path, turned))
    assert torch.equal(read.encoder, t["W_enc"].T) and torch.equal(read.decoder, t["W_dec"])


def test_a_square_of_somebody_else_is_asked_about_and_ours_is_read(tmp_path):
    t = {**_tensors(), "W_enc": drawn(6, 6, seed=1), "W_dec": drawn(6, 6, seed=2)}
    folder = _folder(tmp_path / "a", {**t, "b_enc": torch.zeros(6)}, d_sae=6)
    with pytest.raises(CoderFolderError, match=r"`W_enc` in .* Give `trust_layout=True`"):
        read_saelens(folder)
    assert torch.equal(read_saelens(folder, trust_layout=True).encoder, t["W_enc"].T)
    coder = CODERS["topk"](6, 6, k=2).eval()
    write_saelens(coder, tmp_path / "b")
    assert torch.equal(read_saelens(tmp_path / "b").encoder, coder.encoder)


def test_damaged_and_missing_files_are_a_sentence(tmp_path):
    folder = _folder(tmp_path)
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(CoderFolderError, match=r"sae_weights.safetensors is damaged"):
        read_saelens(folder)
    weights.unlink()
    with pytest.raises(CoderFolderError, match=r"sae_weights.safetensors is missing"):
        read_saelens(folder)
    for text in ("{", "", "\0"):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(CoderFolderError, match=r"cfg.json is damaged"):
            read_saelens(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(CoderFolderError, match=r"cfg.json must hold a JSON object, got list"):
        read_saelens(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(CoderFolderError, match=r"cfg.json is missing"):
        read_saelens(folder)
    save_file({"other": torch.zeros(2)}, folder / "sparsity.safetensors")
    with pytest.raises(CoderFolderError, match=r"must hold sparsity; `sparsity` is missing"):
        read_density(folder)


def test_records_of_ours_that_were_changed_are_a_sentence(tmp_path):
    write_saelens(random_coder("topk"), tmp_path)
    path = tmp_path / "cfg.json"
    found = json.loads(path.read_text())
    found["metadata"]["headscope"]["about"]["heads"] = 4
    path.write_text(json.dumps(found))
    with pytest.raises(CoderFolderError, match=r"the width of the coder, 6, got 4 x 2"):
        read_saelens(tmp_path)
    found["metadata"]["headscope"] = {"architecture": "topk", "settings": {"j": 3}}
    path.write_text(json.dumps(found))
    with pytest.raises(CoderFolderError, match=r"describes no coder: .*argument 'j'"):
        read_saelens(tmp_path)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_saelens(random_coder("topk"), tmp_path / "a")
    with pytest.raises(CoderFolderError, match=r"holds a coder. Choose another name"):
        write_saelens(random_coder("gated"), tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(CoderFolderError, match=r"holds something else \(notes.txt\)"):
        write_saelens(random_coder("gated"), tmp_path / "b", replace=True)
    coder = random_coder("gated")
    coder.decoder[2, 3] = torch.inf
    with pytest.raises(CoderFolderError, match=r"must hold finite numbers, `decoder` has"):
        write_saelens(coder, tmp_path / "c")
    with pytest.raises(CoderFolderError, match=r"the width of the coder, 6, got 4 x 2"):
        write_saelens(random_coder("gated"), tmp_path / "c", {**ABOUT, "heads": 4})
    assert not (tmp_path / "c").exists()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae.exchange.saelens.writing.write_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        write_saelens(random_coder("gated"), tmp_path / "a", replace=True)
    with pytest.raises(CoderFolderError, match=r"cfg.json is missing"):
        read_saelens(tmp_path / "a")


def test_a_kind_that_saelens_does_not_have_is_a_sentence(tmp_path):
    class Doubled(CODERS["topk"]):  # type: ignore[misc]
        architecture = "doubled"

    with pytest.raises(CoderFolderError, match=r"no coder of the kind doubled, only standard"):
        write_saelens(Doubled(WIDTH, LATENTS, **OPTIONS["topk"]), tmp_path / "a")
    assert not (tmp_path / "a").exists()
