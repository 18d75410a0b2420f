from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.coders.coder import Coder
from sae.coders.registry import CODERS, make_coder
from sae.exchange.headscope_folder import CoderFolderError, load_coder, save_coder
from sae.training.config import TrainConfig

ABOUT = {"site": "language.L2", "heads": 3, "head_width": 2, "subject": {"name": "größer"}}


def _coder(kind: str = "topk", **options: object) -> Coder:
    config = TrainConfig(coder=kind, latents=11, k=2, options=options)
    coder = make_coder(config, 6, seed=4)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.add_(0.01)
    coder.about = dict(ABOUT)
    return coder


def _describe(folder: Path, **changes: object) -> None:
    path = folder / "coder.json"
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: v for name, v in found.items() if v != "-"}))


def _reweigh(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Other tensors, with a digest that fits them."""
    from sae.exchange.headscope_folder import _digest

    path = folder / "coder.safetensors"
    found = {name: v for name, v in {**load_file(path), **tensors}.items() if v is not None}
    save_file(found, path)
    _describe(folder, digest=_digest(path))


@pytest.mark.parametrize("kind", sorted(CODERS))
def test_every_kind_comes_back_as_it_was(tmp_path, kind):
    options = {"group_shares": [0.25, 0.75]} if kind == "matryoshka" else {}
    coder = _coder(kind, **options).eval()
    if kind in ("batch_topk", "matryoshka"):
        coder.threshold.fill_(0.25)  # type: ignore[union-attr, operator]
    assert save_coder(coder, tmp_path / "a" / "coder") == tmp_path / "a" / "coder"
    read = load_coder(tmp_path / "a" / "coder")
    assert type(read) is type(coder) and read.settings == coder.settings
    assert read.about == ABOUT
    assert (read.width, read.latents, read.centred) == (6, 11, coder.centred)
    assert not read.training and not any(p.requires_grad for p in read.parameters())
    x = torch.randn(13, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read(x), coder(x)) and torch.equal(read.encode(x), coder.encode(x))


def test_settings_that_are_not_defaults_come_back(tmp_path):
    coder = _coder("matryoshka", group_shares=[0.25, 0.75], threshold_rate=0.5)
    save_coder(coder, tmp_path / "coder")
    read = load_coder(tmp_path / "coder")
    assert read.settings["group_shares"] == [0.25, 0.75] and read.settings["threshold_rate"] == 0.5


def test_what_is_said_about_it_can_be_given(tmp_path):
    save_coder(_coder(), tmp_path / "coder", {"site": "vision.L0"})
    assert load_coder(tmp_path / "coder").about == {"site": "vision.L0"}


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    save_coder(_coder(), tmp_path / "coder")
    (tmp_path / "plain").write_text("")
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in [*tmp_path.glob("coder/*"), tmp_path / "plain"]
    }
    assert len(modes) == 1


def test_a_coder_is_not_written_over_another_unless_it_may_be(tmp_path):
    save_coder(_coder(), tmp_path / "coder")
    before = (tmp_path / "coder" / "coder.safetensors").read_bytes()
    with pytest.raises(CoderFolderError, match="holds a coder. Choose another name"):
        save_coder(_coder("gated"), tmp_path / "coder")
    assert (tmp_path / "coder" / "coder.safetensors").read_bytes() == before
    save_coder(_coder("gated"), tmp_path / "coder", replace=True)
    assert load_coder(tmp_path / "coder").architecture == "gated"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, sentence in (
        (tmp_path, r"new or empty folder, .* holds something else \(notes.txt\)"),
        (tmp_path / "notes.txt", "needs a folder, .* is a file"),
    ):
        with pytest.raises(CoderFolderError, match=sentence):
            save_coder(_coder(), folder, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_killed_process_left_is_no_hindrance(tmp_path):
    (tmp_path / ".coder.safetensors.12.part").write_bytes(b"half")
    save_coder(_coder(), tmp_path)
    assert load_coder(tmp_path).latents == 11


def test_a_coder_that_is_not_finite_is_not_written(tmp_path):
    coder = _coder()
    with torch.no_grad():
        coder.encoder[3, 2] = float("nan")
    with pytest.raises(CoderFolderError, match="must hold finite numbers, `encoder` has others"):
        save_coder(coder, tmp_path / "coder")
    assert not (tmp_path / "coder").exists()


def test_heads_must_make_up_the_width(tmp_path):
    with pytest.raises(CoderFolderError, match=r"must be the width of the coder, 6, got 4 x 2"):
        save_coder(_coder(), tmp_path / "coder", {**ABOUT, "heads": 4})
    assert not (tmp_path / "coder").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "other"}, r'must say "format": "headscope coder", it does not'),
        ({"schema": 2}, r"has schema 2, this version of headscope reads 1"),
        ({"settings": "-"}, r"lacks `settings`"),
        ({"architecture": "relu"}, r"describes no coder: `coder` must be one of .*, got 'relu'"),
        ({"settings": {"k": 2, "j": 1}}, r"describes no coder: .*unexpected keyword argument 'j'"),
        ({"settings": {"k": 12}}, r"describes no coder: `k` must be between 1 and .* 11, got 12"),
        (
            {"latents": 12},
            r"`decoder` in .* must be \[latents, width\] = \[12, 6\] as .*, got \[11, 6\]",
        ),
        ({"latents": 10**12}, r"must be \[latents, width\] = \[1000000000000, 6\]"),
        ({"width": "6"}, r"`width` in .* must be a whole number, got '6'"),
        ({"latents": True}, r"`latents` in .* must be a whole number, got True"),
        ({"about": {**ABOUT, "head_width": 3}}, r"must be the width of the coder, 6, got 3 x 3"),
        ({"about": []}, r"`about` in .* must be an object, got \[\]"),
    ],
)
def test_a_description_that_is_wrong_is_a_sentence(tmp_path, changes, sentence):
    save_coder(_coder(), tmp_path / "coder")
    _describe(tmp_path / "coder", **changes)
    with pytest.raises(CoderFolderError, match=sentence):
        load_coder(tmp_path / "coder")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "", '"coder"', "\0\x01"])
def test_a_description_that_is_no_json_object_is_a_sentence(tmp_path, text):
    save_coder(_coder(), tmp_path / "coder")
    (tmp_path / "coder" / "coder.json").write_text(text)
    with pytest.raises(CoderFolderError, match=r"coder.json (is damaged|must say \"format\")"):
        load_coder(tmp_path / "coder")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"encoder": torch.zeros(6, 11)}, r"`encoder` in .* must be \[11, 6\], got \[6, 11\]"),
        ({"encoder_bias": torch.zeros(1)}, r"`encoder_bias` in .* must be \[11\], got \[1\]"),
        ({"decoder_bias": None}, r"lacks `decoder_bias`, which a coder of kind topk needs"),
        ({"decoder": None}, r"`decoder` in .* must be .* = \[11, 6\] as coder.json says, got None"),
        ({"threshold": torch.zeros(11)}, r"holds `threshold`, which a coder of kind topk does not"),
        ({"decoder_bias": torch.full((6,), torch.inf)}, r"finite numbers, `decoder_bias` has"),
    ],
)
def test_tensors_of_wrong_shapes_and_names_are_named(tmp_path, tensors, sentence):
    save_coder(_coder(), tmp_path / "coder")
    _reweigh(tmp_path / "coder", **tensors)
    with pytest.raises(CoderFolderError, match=sentence):
        load_coder(tmp_path / "coder")


def test_a_damaged_or_missing_file_of_tensors_is_a_sentence(tmp_path):
    folder = save_coder(_coder(), tmp_path / "coder")
    path = folder / "coder.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(CoderFolderError, match=r"coder.safetensors is damaged"):
        load_coder(folder)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(CoderFolderError, match=r"not the file that coder.json was written with"):
        load_coder(folder)
    path.unlink()
    with pytest.raises(CoderFolderError, match=r"coder.safetensors is missing"):
        load_coder(folder)


def test_a_folder_of_another_tool_or_none_is_a_sentence(tmp_path):
    (tmp_path / "cfg.json").write_text('{"architecture": "standard", "d_in": 6}')
    with pytest.raises(CoderFolderError, match="must be a folder of headscope's, it has no coder"):
        load_coder(tmp_path)
    with pytest.raises(
        CoderFolderError, match="must be a folder of headscope's, it does not exist"
    ):
        load_coder(tmp_path / "nothing")
