"""How the autoencoder of patterns is trained: until a held-out part stops improving."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.atlas.autoencoder import Autoencoder, AutoencoderOptions, Training, chunks
from analysis.progress import Progress

EPOCHS = "epochs"


def train_autoencoder(
    images: NDArray[np.floating],
    seed: int,
    options: AutoencoderOptions | None = None,
    progress: Progress | None = None,
) -> tuple[Autoencoder, Training]:
    """An autoencoder trained until a held-out part of the patterns stops improving.

    Args:
        images: ``[pattern side side]``, rows sum to one; float16 is read batch by batch.
        seed: of the first weights, of the held-out part and of the order; with the same seed and
            number of threads the result is the same bit by bit.

    Returns:
        The autoencoder with the weights of its best epoch, and how the training went.
    """
    options = options or AutoencoderOptions()
    if len(images) < 10:
        raise ValueError(
            f"An autoencoder needs at least 10 patterns, got {len(images)}. Take more samples."
        )
    began = time.monotonic()
    model = Autoencoder(images.shape[-1], options, seed)
    model.check(images)
    dice = np.random.default_rng(seed)
    order = dice.permutation(len(images))
    kept = max(round(options.held_out * len(images)), 1)
    held, rest = np.sort(order[:kept]), order[kept:]
    batch = min(options.batch, max(len(rest) // 20, 8))
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    stage = (progress or Progress()).stage("autoencoder", None, EPOCHS)
    losses: list[float] = []
    model.start_from(images[np.sort(rest)])
    baseline = best = _mean_loss(model, images, held)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    waited, slowed, finished = 0, False, False
    stopped = f"It still improved after {options.most_epochs} epochs, the most that were allowed."
    for _ in range(options.most_epochs):
        dice.shuffle(rest)
        model.train()
        for start in range(0, len(rest), batch):
            loss = model.loss(images[np.sort(rest[start : start + batch])])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(_mean_loss(model, images, held))
        stage.step()
        waited = 0 if losses[-1] < best - options.gain * baseline else waited + 1
        if losses[-1] < best:
            best = losses[-1]
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        if waited >= options.patience:
            if slowed:
                finished = True
                stopped = f"The held-out part stopped improving after {len(losses)} epochs."
                break
            slowed, waited = True, 0
            for group in optimiser.param_groups:
                group["lr"] /= 5
    stage.end()
    model.load_state_dict(weights)
    told = Training(tuple(losses), best, baseline, finished, stopped, time.monotonic() - began)
    return model.eval(), told


def _mean_loss(model: Autoencoder, images: NDArray[np.floating], rows: NDArray[np.int64]) -> float:
    model.eval()
    with torch.inference_mode():
        total = sum(float(model.loss(some)) * len(some) for some in chunks(images[rows]))
    return total / len(rows)
