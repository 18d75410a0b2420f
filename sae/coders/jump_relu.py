"""JumpReLU: a threshold per latent, learnt through a window around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.coders.coder import Coder, Losses, Moment
from sae.coders.defaults import Defaults

if TYPE_CHECKING:
    from sae.training.config import TrainConfig

_UNIT_NORM_BANDWIDTH = 0.001
_UNIT_NORM_START = 0.001


class JumpReLU(Coder):
    """A latent fires where its pre-activation is above its threshold, and is not shrunk there.

    The loss is ``|x - x̂|² + sparsity · (L0 / target - 1)²``, or ``+ sparsity · L0`` where target is
    None, L0 being the mean number of latents above their thresholds. Thresholds have no gradient,
    so one is put in its place: with ``r = 1[|pre - θ| < ε / 2]``, ``-θ/ε · r`` for the jump and
    ``-1/ε · r`` for L0. The encoder learns from the reconstruction alone.

    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435); target and numbers of
    dictionary_learning, which counts L0 after the jump where the paper, and we, count before. The
    paper learns the logarithm of thresholds; Adam then hardly moves a small one (SAELens issue
    494), so we learn the threshold itself, kept at 0 or more, as both libraries do. One step
    moves it ``sqrt(width)`` times as far as weights: as it would for rows of norm 1.

    Attributes:
        threshold: in units of strengths.

    Args:
        sparsity: weight of the loss of L0, in squared units of strengths.
        target: latents that should fire per row; None: as few as the weight makes.
        bandwidth: ε, in units of strengths. None: 0.001 for rows of norm 1, so times the root of
            the width.
        start: of thresholds. None: 0.001 likewise.
    """

    architecture: ClassVar[str] = "jump_relu"
    threshold: nn.Parameter
    needs_k: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        centred: bool = True,
        seed: int = 0,
        sparsity: float = 1.0,
        target: float | None = None,
        bandwidth: float | None = None,
        start: float | None = None,
    ) -> None:
        super().__init__(width, latents, centred=centred, seed=seed)
        root = width**0.5
        self.sparsity, self.target = sparsity, target
        self.bandwidth = _UNIT_NORM_BANDWIDTH * root if bandwidth is None else bandwidth
        self.start = _UNIT_NORM_START * root if start is None else start
        if self.bandwidth <= 0 or self.start < 0 or (target is not None and target <= 0):
            raise ValueError(
                "`bandwidth` and `target` must be positive and `start` not negative, got "
                f"{self.bandwidth}, {target} and {self.start}."
            )
        self.learn_per_latent("threshold", self.start)

    @classmethod
    def defaults(cls, width: int, latents: int) -> Defaults:
        """dictionary_learning's weight, 1 for rows of norm 1, so times the width.

        Its learning rate, 7e-5, is for a hundred thousand steps and more; SAELens' is taken. It is
        weak in short trainings: after 200,000 rows of a bundled model (width 128, 2,048 latents,
        390 steps of 512, target 8) 208 latents fired per row, none was dead, and the reconstruction
        was worse than the mean; of the default batches (48 steps, target 32), 859. In a few hundred
        steps set ``learning_rate`` to about 3e-3 (9.3 fire, explained variance 0.79). On
        rows of a known dictionary the target was met with that rate, and a higher ``sparsity``
        found fewer of its features.
        """
        return Defaults(
            learning_rate=3e-4,
            betas=(0.0, 0.999),
            sparsity=float(width),
            source="dictionary_learning's JumpReluTrainer; SAELens 6.54 (learning rate)",
        )

    @classmethod
    def options_of(cls, config: TrainConfig, width: int) -> dict[str, Any]:
        return {"sparsity": config.sparsity, "target": float(config.k)}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "target": self.target,
            "bandwidth": self.bandwidth,
            "start": self.start,
        }

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        return pre.relu() * (pre > self.threshold)

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        with torch.no_grad():
            # On the data: a clamp in the graph would hold a threshold at 0 for ever.
            self.threshold.clamp_(min=0)
        pre = self.pre_activations(x)
        strengths = jump(pre, self.threshold, self.bandwidth)
        reconstruction = self.decode(strengths)
        error = (x - reconstruction).pow(2).sum(1).mean()
        active = step(pre, self.threshold, self.bandwidth).sum(1).mean()
        excess = active if self.target is None else (active / self.target - 1).pow(2)
        sparsity = self.sparsity * moment.warmth * excess
        return Losses(
            error + sparsity,
            {"reconstruction": error.detach(), "sparsity": sparsity.detach()},
            (strengths > 0).sum(0),
            reconstruction.detach(),
        )

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        others = [p for name, p in self.named_parameters() if name != "threshold"]
        return [
            {"params": others, "lr": learning_rate},
            {"params": [self.threshold], "lr": learning_rate * self.width**0.5},
        ]


def jump(
    pre: Float[Tensor, "batch latent"], threshold: Float[Tensor, " latent"], bandwidth: float
) -> Float[Tensor, "batch latent"]:
    """``pre`` where it is above the threshold, else 0; with a gradient for the threshold."""
    found = _Jump.apply(pre, threshold, bandwidth)
    assert isinstance(found, Tensor)
    return found


def step(
    pre: Float[Tensor, "batch latent"], threshold: Float[Tensor, " latent"], bandwidth: float
) -> Float[Tensor, "batch latent"]:
    """1 where ``pre`` is above the threshold, else 0; with a gradient for the threshold alone."""
    found = _Step.apply(pre, threshold, bandwidth)
    assert isinstance(found, Tensor)
    return found


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (pre - threshold).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        inside = gradient * _window(pre, threshold, ctx.bandwidth)
        return (
            gradient * (pre > threshold),
            -(threshold / ctx.bandwidth) * inside.sum(0).to(threshold),
            None,
        )


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        # Of the thresholds' type: a sum of thousands of ones is not exact in bfloat16.
        return (pre > threshold).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        inside = gradient * _window(pre, threshold, ctx.bandwidth)
        return None, -inside.sum(0).to(threshold) / ctx.bandwidth, None
