"""The autoencoder learns what patterns differ by, stops by itself, and is the same twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.atlas.autoencoder import Autoencoder, AutoencoderOptions
from analysis.atlas.training import train_autoencoder

SIDE = 16
QUICK = AutoencoderOptions(
    latent=5, channels=(4, 8, 8), batch=32, learning_rate=5e-3, most_epochs=60
)


def stripes(count: int = 120, seed: int = 0) -> np.ndarray:
    """Each pattern has one bright column, the same in all of its rows."""
    dice = np.random.default_rng(seed)
    images = np.full((count, SIDE, SIDE), 0.3 / SIDE)
    images[np.arange(count), :, dice.integers(0, SIDE, count)] += 0.7
    return images.astype(np.float16)


@pytest.mark.parametrize("loss", ["hellinger", "kl"])
def test_it_learns_where_stripes_are(loss: str) -> None:
    images = stripes(240)
    model, training = train_autoencoder(images, 0, replace(QUICK, loss=loss, patience=6))
    assert training.explained > 0.5
    again = model.decode(model.encode(images))
    assert again.shape == images.shape
    np.testing.assert_allclose(again.sum(-1), 1, atol=1e-5)
    brightest = again.mean(1).argmax(-1) == images.astype(float).mean(1).argmax(-1)
    assert brightest.mean() > 0.8


def test_the_held_out_part_decides_and_the_best_weights_are_kept() -> None:
    _, training = train_autoencoder(stripes(), 0, replace(QUICK, gain=0.03))
    assert training.finished and "stopped improving" in training.stopped
    assert training.best == min(training.held_out_loss) < training.baseline
    assert len(training.held_out_loss) < QUICK.most_epochs
    _, short = train_autoencoder(stripes(), 0, replace(QUICK, most_epochs=1))
    assert not short.finished and "still improved after 1 epochs" in short.stopped


def test_of_noise_it_explains_nothing_and_says_so() -> None:
    noise = np.random.default_rng(0).dirichlet(np.full(SIDE, 0.3), (160, SIDE))
    _, training = train_autoencoder(noise.astype(np.float16), 0, QUICK)
    assert training.finished
    assert 0 <= training.explained < 0.05


def test_with_one_seed_it_is_the_same_and_the_shared_dice_are_not_touched() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, first = train_autoencoder(stripes(), 3, replace(QUICK, most_epochs=2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    two, second = train_autoencoder(stripes(), 3, replace(QUICK, most_epochs=2))
    other, _ = train_autoencoder(stripes(), 4, replace(QUICK, most_epochs=2))
    assert first.held_out_loss == second.held_out_loss
    assert np.array_equal(one.encode(stripes()), two.encode(stripes()))
    assert not np.array_equal(one.encode(stripes()), other.encode(stripes()))


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model, training = train_autoencoder(stripes(40), 0, replace(QUICK, most_epochs=2))
    model.save(tmp_path, training)
    loaded, told = Autoencoder.load(tmp_path)
    assert told == training and loaded.options == model.options
    latents = model.encode(stripes(9))
    assert np.array_equal(loaded.encode(stripes(9)), latents)
    assert np.array_equal(loaded.decode(latents), model.decode(latents))
    with pytest.raises(FileNotFoundError, match="must hold autoencoder.json"):
        Autoencoder.load(tmp_path / "elsewhere")


def test_rows_without_weight_are_borne() -> None:
    images = stripes(40)
    images[3, 5] = 0
    for loss in ("hellinger", "kl"):
        model, training = train_autoencoder(images, 0, replace(QUICK, loss=loss, most_epochs=2))
        assert np.isfinite(training.held_out_loss).all()
        assert np.isfinite(model.encode(images)).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="`side` must be a multiple of 8.*got 20"):
        train_autoencoder(np.full((12, 20, 20), 0.05), 0)
    with pytest.raises(ValueError, match="at least 10 patterns, got 9"):
        train_autoencoder(stripes(9), 0)
    model, _ = train_autoencoder(stripes(12), 0, replace(QUICK, most_epochs=1))
    with pytest.raises(ValueError, match=r"\[pattern 16 16\], got \[2, 8, 8\]"):
        model.encode(np.ones((2, 8, 8)))
