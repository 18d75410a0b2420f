"""How learning rate and sparsity move over a training, and when dead features start again."""

from __future__ import annotations

from dataclasses import dataclass

from sae.training.config import TrainConfig

_RESAMPLINGS = 4
"""How often dead features are resampled in a training (Kissane et al. 2024, released runs)."""


@dataclass(frozen=True)
class Schedule:
    """Factors by step; all of them are functions of the step alone, so that a resumed training
    follows the same curve.

    Attributes:
        steps: optimiser steps in all.
        warm_up: steps over which the learning rate rises from 0, at the beginning and after
            each resampling.
        decay: steps at the end over which it falls to 0.
        sparsity_warm_up: steps over which sparsity losses rise from 0.
        resamples: whether dead features are resampled.
    """

    steps: int
    warm_up: int
    decay: int
    sparsity_warm_up: int
    resamples: bool = False

    @classmethod
    def of(cls, config: TrainConfig, steps: int, resamples: bool) -> Schedule:
        """The schedule that a configuration asks for, for so many steps in all."""
        return cls(
            steps,
            config.warm_up_steps(steps),
            round(config.decay * steps),
            round(config.sparsity_warm_up * steps),
            resamples,
        )

    def learning_rate(self, step: int) -> float:
        """0 to 1, the share of the peak with which step ``step`` (from 0) is taken.

        No step is taken with a rate of exactly 0: the first has 1 / warm_up of the peak, the last
        1 / decay.
        """
        since = step - max((at for at in self.resampling_steps if at <= step), default=0)
        rising = (since + 1) / self.warm_up if self.warm_up else 1.0
        falling = (self.steps - step) / self.decay if self.decay else 1.0
        return min(rising, falling, 1.0)

    def warmth(self, step: int) -> float:
        """0 to 1, the factor of sparsity losses at step ``step`` (from 0)."""
        return min(step / self.sparsity_warm_up, 1.0) if self.sparsity_warm_up else 1.0

    def progress(self, step: int) -> float:
        """0 to 1, the share of the training that lies behind before step ``step``."""
        return step / self.steps

    @property
    def resampling_steps(self) -> tuple[int, ...]:
        """Steps before which dead features are resampled; none in the decay, where they could not
        be learnt any more."""
        if not self.resamples:
            return ()
        steady = self.steps - self.decay
        return tuple(steady * i // (_RESAMPLINGS + 1) for i in range(1, _RESAMPLINGS + 1))
