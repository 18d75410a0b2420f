"""Coders to and from the tools themselves, each in an environment of its own.

`HEADSCOPE_PEERS` may name a folder where these environments are kept; they are the ones of
`benchmarks/coders.py`. Without it they are made anew, from a package index.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
from foreign_folders import HEAD_WIDTH, HEADS, WIDTH, random_coder, rows
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.coders.registry import CODERS
from sae.exchange.formats import export, load_coder
from sae.exchange.headscope_folder import save_coder

TESTS = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _asked(peer: str, folder: Path) -> None:
    """The peer's own interpreter runs its child in ``folder``."""
    path = TESTS.parent / "benchmarks" / "coder_peers.py"
    spec = importlib.util.spec_from_file_location("coder_peers", path)
    assert spec is not None and spec.loader is not None
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    place = Path(os.environ.get("HEADSCOPE_PEERS", folder / "peers"))
    python = peers.environment(place, peer)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, TESTS / f"{peer}_child.py", folder],
        env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def saelens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of ours and of SAELens, and what it makes of both."""
    folder = tmp_path_factory.mktemp("saelens")
    save_file({"z": rows().view(-1, HEADS, HEAD_WIDTH)}, folder / "rows.safetensors")
    for kind in CODERS:
        for centred in (True, False):
            name = f"{kind}_{centred}"
            save_coder(random_coder(kind, centred=centred), folder / "kept" / name)
            export(folder / "kept" / name, "saelens", folder / "ours" / name)
    away = {"site": "vision.L0", "heads": HEADS, "head_width": HEAD_WIDTH}
    save_coder(random_coder("topk", about=away), folder / "kept" / "vision")
    export(folder / "kept" / "vision", "saelens", folder / "ours" / "vision")
    save_coder(random_coder("topk", about={}), folder / "kept" / "no_heads")
    export(folder / "kept" / "no_heads", "saelens", folder / "ours" / "no_heads")
    _asked("saelens", folder)
    return folder


def _same(made: Tensor, said: Tensor) -> None:
    assert made.shape == said.shape
    assert said.std() > 0.1
    assert (made - said).abs().max() < 1e-5


def test_saelens_reads_what_we_write_and_computes_the_same(saelens):
    names = sorted(path.name for path in (saelens / "ours").iterdir())
    assert len(names) == 2 * len(CODERS) + 2
    for name in names:
        coder = load_coder(saelens / "kept" / name)
        said = load_file(saelens / "said" / f"{name}.safetensors")
        _same(coder(rows()), said["reconstruction"])
        _same(coder.as_used().encode(rows()), said["strengths"])


def test_we_read_what_saelens_writes_and_compute_the_same(saelens):
    names = sorted(path.name for path in (saelens / "theirs").iterdir())
    assert len(names) == 6 * 2 * 2
    for name in names:
        coder = load_coder(saelens / "theirs" / name)
        done = name.replace("checkpoint", "done")
        said = load_file(saelens / "said" / f"{done}.safetensors")
        _same(coder(rows()), said["reconstruction"])
        _same(coder.encode(rows()), said["strengths"])
        assert coder.about["site"] == "language.L5"
        assert coder.about["subject"] == {"name": "gpt2-small"}


def test_we_read_what_sparsify_writes_and_compute_the_same(tmp_path):
    save_file({"z": rows().view(-1, HEADS, HEAD_WIDTH)}, tmp_path / "rows.safetensors")
    _asked("sparsify", tmp_path)
    latents = []
    for folder in sorted((tmp_path / "theirs").iterdir()):
        coder = load_coder(folder)
        said = load_file(tmp_path / "said" / f"{folder.name}.safetensors")
        _same(coder(rows()), said["reconstruction"])
        latents.append(coder.latents)
    assert latents == [11, 2 * WIDTH]
