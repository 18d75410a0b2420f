"""The effects of a study that have a gradient, as objectives of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.effects import DIFFERENTIABLE, Effect
from analysis.importance.readings import Reading, ReadingError
from analysis.importance.study import (
    EffectError,
    StudyOptions,
    chosen_effects,
    refuse_unreadable,
)
from analysis.importance.targets import Data, Reader
from probes.replay import kept_positions

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class Objectives:
    """What a study by gradients differentiates.

    Attributes:
        effects: the effects that were asked for and have a gradient.
        refused: the other effects, each with the reason.
    """

    options: StudyOptions
    study: str
    reader: Reader | None = None
    effects: list[Effect] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read.

        Raises:
            EffectError: no effect that was asked for has a gradient at the intact model.
        """
        self.reader = Reader(subject, data, label=self.options.label, seed=self.options.seed)
        asked = chosen_effects(self.options, self.reader)
        self.refused = {e.name: _no_gradient(e, self.study) for e in asked if _is_flat(e)}
        self.effects = [effect for effect in asked if not _is_flat(effect)]
        if not self.effects:
            raise EffectError(next(iter(self.refused.values())))
        for effect in self.effects:
            refuse_unreadable(effect, self.reader)

    def positions(self, subject: Subject, batch: Batch) -> Tensor | None:
        """The positions whose logits are enough, None for all: see `kept_settings`."""
        assert self.reader is not None
        return kept_positions(subject, batch, self.reader.reading(batch).positions)

    def of(self, batch: Batch, output: Any, positions: Tensor | None = None) -> BatchObjectives:
        """The objectives of a batch of which the intact model gave out ``output``.

        Args:
            positions: the positions that the logits hold, None for all.
        """
        assert self.reader is not None
        reading = self.reader.reading(batch)
        if self.options.label:
            with torch.no_grad():
                read = reading.of(output, positions)
                reading = self.reader.predicted(reading, batch, read)
        return BatchObjectives(reading, output, positions)

    def reasons(self, towers: Any, *prefixes: str) -> dict[tuple[str, str], str]:
        """``(tower, measure)`` -> why it is not measured, for effects without a gradient."""
        return {
            (tower, f"{prefix}_{effect}"): why
            for effect, why in self.refused.items()
            for tower in towers
            for prefix in prefixes
        }


@dataclass(frozen=True)
class BatchObjectives:
    """Objectives of one forward, whose logits are at ``positions`` (None: everywhere)."""

    reading: Reading
    output: Any
    positions: Tensor | None = None

    @property
    def has_null(self) -> bool:
        """Whether every read has a shuffled target, on which the null is taken."""
        return bool(self.reading.reads) and bool((self.reading.shuffled >= 0).all())

    def values(self, effect: Effect) -> list[Tensor]:
        """The objective, and where there are shuffled targets the null's, each ``[example]``."""
        return [self.value(effect), *([self.value(effect, null=True)] if self.has_null else [])]

    def value(self, effect: Effect, *, null: bool = False) -> Tensor:
        """Float64 ``[example]``: the objective summed over each example's reads.

        Args:
            null: of the shuffled target instead.

        Raises:
            ReadingError: it is not finite.
        """
        assert effect.objective is not None
        reading = self.reading
        target = reading.shuffled if null else reading.target
        logits = reading.of(self.output, self.positions)
        read = effect.objective(logits, target[:, None], reading.wrong)
        if not bool(torch.isfinite(read).all()):
            raise ReadingError(
                f"The {effect.name} of the intact model must be finite, got NaN or infinity. "
                "Check its weights, or load it in float32."
            )
        return reading.per_example(read[:, 0])


def kept_settings(positions: Tensor | None) -> dict[str, Any]:
    """What the model's forward is called with to give logits at these positions alone."""
    return {} if positions is None else {"logits_to_keep": positions}


def _is_flat(effect: Effect) -> bool:
    return effect.name not in DIFFERENTIABLE


def _no_gradient(effect: Effect, study: str) -> str:
    return (
        f"Effect {effect.name!r} has no gradient at the intact model, where it is at its smallest "
        f"or a step, so {study!r} cannot estimate it. Choose one of {', '.join(DIFFERENTIABLE)}, "
        "with `--label predicted` where the data has no labels."
    )
