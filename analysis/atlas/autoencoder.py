"""A convolutional autoencoder of attention patterns: sixteen numbers that say what one looks like.

Three convolutions of stride 2, a linear layer to the latent, and the same way back. The shape is a
reconstruction after Li et al. (IEEE TVCG 2023, arXiv 2303.13731), who summarise the patterns of a
ViT with an autoencoder; layers, widths and loss are ours.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.atomic_file import write_json, written_atomically

WEIGHTS, ABOUT = "autoencoder.safetensors", "autoencoder.json"
_SHRINK = 8  # Three strides of 2.
_FLOOR = 1e-6
_CHUNK = 512


@dataclass(frozen=True)
class AutoencoderOptions:
    """How an autoencoder of patterns is trained.

    Attributes:
        latent: numbers per pattern.
        channels: of the three convolutions.
        loss: ``kl``: mean over rows of the Kullback-Leibler divergence from the row to what is
            decoded, in nats. ``hellinger``: mean squared difference of the square roots of the
            weights, times the side, which does not forgive a missed weight less than a wrong one.
        batch: patterns per step; small sets take smaller ones, so that an epoch has 20 steps.
        gain: share of the baseline by which the held-out loss must fall to count as better.
        patience: epochs without that, after which the rate falls to a fifth, and in the end
            training stops.
        most_epochs: where training ends although it still improves; `Training.stopped` says so.
    """

    latent: int = 16
    channels: tuple[int, int, int] = (8, 16, 32)
    loss: Literal["kl", "hellinger"] = "hellinger"
    batch: int = 256
    learning_rate: float = 3e-3
    gain: float = 0.005
    patience: int = 3
    most_epochs: int = 100
    held_out: float = 0.1


@dataclass(frozen=True)
class Training:
    """How the training went: the loss of the held-out part, epoch by epoch.

    Attributes:
        held_out_loss: mean after each epoch.
        best: the lowest, which belongs to the weights that were kept.
        baseline: the same loss if every pattern is decoded as the mean pattern, where it starts.
        finished: whether it had stopped improving when training ended.
        stopped: one sentence that says why training ended.
    """

    held_out_loss: tuple[float, ...]
    best: float
    baseline: float
    finished: bool
    stopped: str
    seconds: float

    @property
    def explained(self) -> float:
        """Share of the baseline's loss that is gone; 1 is perfect, 0 no better than the mean."""
        return 1 - self.best / self.baseline if self.baseline > 0 else 0.0


class Autoencoder(nn.Module):
    """Patterns ``[pattern side side]`` to latents ``[pattern latent]`` and back."""

    def __init__(self, side: int, options: AutoencoderOptions, seed: int) -> None:
        if side < _SHRINK or side % _SHRINK:
            raise ValueError(
                f"`side` must be a multiple of {_SHRINK}, as three convolutions halve it, got "
                f"{side}. Pool the patterns to 32 or 64."
            )
        super().__init__()
        self.side, self.options = side, options
        first, second, third = options.channels
        small = side // _SHRINK
        flat = third * small**2

        def made(layer: type[nn.Module], *sizes: int) -> nn.Module:
            # Not initialised by torch, which would draw from the dice that all programs share.
            return nn.utils.skip_init(layer, *sizes)

        self.encoder = nn.Sequential(
            made(nn.Conv2d, 1, first, 3, 2, 1), nn.ReLU(),
            made(nn.Conv2d, first, second, 3, 2, 1), nn.ReLU(),
            made(nn.Conv2d, second, third, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), made(nn.Linear, flat, options.latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            made(nn.Linear, options.latent, flat), nn.ReLU(),
            nn.Unflatten(1, (third, small, small)),
            made(nn.ConvTranspose2d, third, second, 4, 2, 1), nn.ReLU(),
            made(nn.ConvTranspose2d, second, first, 4, 2, 1), nn.ReLU(),
            made(nn.ConvTranspose2d, first, 1, 4, 2, 1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(1, 1, side, side))
        dice = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=dice)
        # Untrained, it decodes the mean pattern: training can only tell more than that.
        nn.init.zeros_(self.get_parameter("decoder.7.weight"))

    def start_from(self, images: NDArray[np.floating]) -> None:
        """Take the mean of patterns ``[pattern side side]`` as what is known beforehand."""
        parts = chunks(images)
        if self.options.loss == "hellinger":
            mean = sum(_seen(some).sum(0) for some in parts) / len(images)
        else:
            mean = sum(_seen(some).square().sum(0) for some in parts) / (len(images) * self.side)
            mean = torch.as_tensor(mean).clamp_min(_FLOOR).log()
        self.mean = torch.as_tensor(mean)[None]

    def encode(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Float ``[pattern latent]`` of patterns ``[pattern side side]``."""
        self.check(images)
        with torch.inference_mode():
            parts = [self.encoder(self._input(_seen(some))).numpy() for some in chunks(images)]
        return np.concatenate(parts)

    def decode(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        """Float ``[pattern side side]``, rows sum to one, of latents ``[pattern latent]``."""
        with torch.inference_mode():
            made = self._decoded(torch.from_numpy(np.asarray(latents, np.float32)))[:, 0]
            if self.options.loss == "kl":
                return made.softmax(-1).numpy()
            weight = made.clamp_min(0).square() + _FLOOR
            return (weight / weight.sum(-1, keepdim=True)).numpy()

    def loss(self, images: NDArray[np.floating]) -> Tensor:
        """Scalar: the mean loss of patterns ``[pattern side side]``."""
        seen = _seen(images)
        made = self._decoded(self.encoder(self._input(seen)))
        if self.options.loss == "hellinger":
            return (made - seen).square().mean()
        rows = seen.square() / self.side
        return (_entropy_terms(rows) - rows * made.log_softmax(-1)).sum(-1).mean()

    def save(self, folder: Path, training: Training) -> None:
        """Weights and a description, without pickle; the description comes last."""
        from safetensors.torch import save

        about = {"side": self.side, "options": asdict(self.options), "training": asdict(training)}
        with written_atomically(folder / WEIGHTS) as path:
            # Not save_file: its files can be read by their owner alone, whatever the umask.
            path.write_bytes(save(self.state_dict()))
        write_json(folder / ABOUT, about)

    @classmethod
    def load(cls, folder: Path) -> tuple[Autoencoder, Training]:
        """What `save` wrote.

        Raises:
            FileNotFoundError: nothing was saved there.
        """
        from safetensors.torch import load_file

        if not (folder / ABOUT).is_file():
            raise FileNotFoundError(
                f"{folder} must hold {ABOUT}, and it does not. Run the atlas again to train one."
            )
        about = json.loads((folder / ABOUT).read_text())
        about["options"]["channels"] = tuple(about["options"]["channels"])
        model = cls(about["side"], AutoencoderOptions(**about["options"]), seed=0)
        model.load_state_dict(load_file(folder / WEIGHTS))
        told = about["training"] | {"held_out_loss": tuple(about["training"]["held_out_loss"])}
        return model.eval(), Training(**told)

    def _input(self, seen: Tensor) -> Tensor:
        return seen - self.mean if self.options.loss == "hellinger" else seen - 1

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.decoder(latents) + self.mean

    def check(self, images: NDArray[np.floating]) -> None:
        if images.ndim != 3 or images.shape[1:] != (self.side, self.side) or not len(images):
            raise ValueError(
                f"Patterns must be [pattern {self.side} {self.side}], got {list(images.shape)}. "
                "Pool them to the side with which the autoencoder was trained."
            )


def _seen(images: NDArray[np.floating]) -> Tensor:
    """Float ``[pattern 1 side side]``: what the network sees, 1 everywhere for even rows.

    The square root keeps a diagonal, 64 times an even weight, from drowning all else.
    """
    made = torch.from_numpy(np.ascontiguousarray(images)).float()
    return (made * images.shape[-1]).clamp_min(0).sqrt()[:, None]


def chunks(images: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    return [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]


def _entropy_terms(rows: Tensor) -> Tensor:
    return torch.xlogy(rows, rows)
