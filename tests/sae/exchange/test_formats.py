from __future__ import annotations

import pytest
import torch
from foreign_folders import ABOUT, LATENTS, WIDTH, drawn, random_coder, rows, write_folder

from sae.coders.registry import CODERS
from sae.exchange.formats import export, format_of, load_coder
from sae.exchange.headscope_folder import save_coder
from sae.exchange.refusals import CoderFolderError
from sae.exchange.saelens import read_density, write_saelens

ENCODER, DECODER = drawn(LATENTS, WIDTH, seed=1), drawn(LATENTS, WIDTH, seed=2)


def _every_format(path):
    save_coder(random_coder("topk"), path / "headscope")
    write_saelens(random_coder("topk"), path / "saelens")
    write_folder(
        path / "sparsify",
        ("cfg.json", {"activation": "topk", "k": 3, "d_in": WIDTH}),
        "sae.safetensors",
        {
            "encoder.weight": ENCODER,
            "encoder.bias": torch.zeros(LATENTS),
            "W_dec": DECODER,
            "b_dec": torch.zeros(WIDTH),
        },
    )
    write_folder(
        path / "dictionary_learning",
        ("config.json", {"trainer": {"dict_class": "AutoEncoder", "activation_dim": WIDTH}}),
        "ae.pt",
        {
            "encoder.weight": ENCODER,
            "encoder.bias": torch.zeros(LATENTS),
            "decoder.weight": DECODER.T,
            "bias": torch.zeros(WIDTH),
        },
    )
    return ["headscope", "saelens", "sparsify", "dictionary_learning"]


def test_each_format_is_told_by_its_files_and_read(tmp_path):
    for name in _every_format(tmp_path):
        assert format_of(tmp_path / name) == name
        read = load_coder(tmp_path / name)
        assert (read.width, read.latents) == (WIDTH, LATENTS) and read(rows()).isfinite().all()


def test_every_format_can_be_exported_to_both(tmp_path):
    for name in _every_format(tmp_path):
        wanted = load_coder(tmp_path / name)(rows())
        for to in ("headscope", "saelens"):
            out = tmp_path / f"{name} to {to}"
            assert export(tmp_path / name, to, out) == out and format_of(out) == to
            made = load_coder(out)(rows())
            assert (made - wanted).abs().max() < 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("kind", sorted(CODERS))
def test_there_and_back_again_is_the_coder_as_it_is_used(tmp_path, kind):
    coder = random_coder(kind)
    save_coder(coder, tmp_path / "a")
    export(tmp_path / "a", "saelens", tmp_path / "b", metadata={"context_size": 7})
    export(tmp_path / "b", "headscope", tmp_path / "c")
    back = load_coder(tmp_path / "c")
    assert back.architecture == coder.as_used().architecture and back.about == ABOUT
    assert (back(rows()) - coder(rows())).abs().max() < 1e-6 * coder(rows()).abs().max()


def test_shares_go_with_a_coder_from_saelens_to_saelens(tmp_path):
    density = torch.linspace(0, 1, LATENTS)
    write_saelens(random_coder("topk"), tmp_path / "a", density=density)
    export(tmp_path / "a", "saelens", tmp_path / "b")
    found = read_density(tmp_path / "b")
    assert found is not None and torch.allclose(found, density, atol=1e-6)
    export(tmp_path / "a", "saelens", tmp_path / "b", density=1 - density, replace=True)
    found = read_density(tmp_path / "b")
    assert found is not None and torch.allclose(found, 1 - density, atol=1e-6)


def test_what_cannot_be_exported_is_a_sentence(tmp_path):
    _every_format(tmp_path)
    for arguments, sentence in (
        ({"to": "sparsify"}, r"`to` must be one of headscope, saelens, got 'sparsify'"),
        ({"to": "headscope", "density": torch.ones(LATENTS)}, r"must be left out for headscope"),
        ({"to": "headscope", "metadata": {}}, r"must be left out for headscope"),
    ):
        with pytest.raises(ValueError, match=sentence):
            export(tmp_path / "saelens", out=tmp_path / "out", **arguments)
    for to in ("headscope", "saelens"):
        with pytest.raises(CoderFolderError, match="holds something else"):
            export(tmp_path / "sparsify", to, tmp_path / "sparsify", replace=True)
    assert not (tmp_path / "out").exists() and format_of(tmp_path / "sparsify") == "sparsify"


def test_a_folder_without_a_coder_or_with_several_is_a_sentence(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "cfg.json").write_text("{}")
    with pytest.raises(
        CoderFolderError,
        match=r"notes must hold a coder: coder.json \(headscope\), sae_weights.safetensors "
        r"\(saelens\), .* ae.pt \(dictionary_learning\). It has none of these files",
    ):
        load_coder(tmp_path / "notes")
    with pytest.raises(CoderFolderError, match=r"must be a folder, .*nothing does not exist"):
        load_coder(tmp_path / "nothing")
    with pytest.raises(CoderFolderError, match=r"must be a folder, .*cfg.json is a file"):
        load_coder(tmp_path / "notes" / "cfg.json")
    _every_format(tmp_path / "all")
    with pytest.raises(
        CoderFolderError,
        match=r"got folders of 4. Name one of dictionary_learning, headscope, saelens, sparsify\.",
    ):
        load_coder(tmp_path / "all")
    (tmp_path / "all" / "saelens" / "ae.pt").write_text("")
    with pytest.raises(CoderFolderError, match=r"files of saelens and dictionary_learning. Move"):
        load_coder(tmp_path / "all" / "saelens")


def test_a_square_is_read_where_the_layout_is_trusted(tmp_path):
    square = torch.arange(36.0).view(6, 6)
    tensors = {"W_enc": square, "W_dec": square, "b_enc": torch.zeros(6), "b_dec": torch.zeros(6)}
    entries = {"architecture": "standard", "d_in": 6, "metadata": {"sae_lens_version": "6.1.0"}}
    write_folder(tmp_path / "a", ("cfg.json", entries), "sae_weights.safetensors", tensors)
    for read in (load_coder, lambda folder: export(folder, "headscope", tmp_path / "b")):
        with pytest.raises(CoderFolderError, match="trust_layout=True"):
            read(tmp_path / "a")
    assert torch.equal(load_coder(tmp_path / "a", trust_layout=True).encoder, square.T)
    export(tmp_path / "a", "headscope", tmp_path / "b", trust_layout=True)
    assert torch.equal(load_coder(tmp_path / "b").encoder, square.T)
