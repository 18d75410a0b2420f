"""What a change of the output is worth: probability, logit, margin, cross entropy, divergence.

Every effect is positive where the model is better (or other) with the head than without:
``change = objective(intact) - objective(without)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.importance.log_probability import blocks_of_rows, log_probability

Needs = Literal["target", "logits", "features", "block"]
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Effect:
    """One way to compare two outputs at the same reads.

    Attributes:
        needs: a known target, any logits, vectors, or the output of the block that the head is in
            (``read`` is then the block's output at the reads).
        objective: ``(read [read width], target [read choice], wrong [read])`` to float32
            ``[read choice]``, differentiable; the effect is its drop. None where the effect is a
            distance and has no gradient at the intact model.
        keep: what is kept of the intact model's output, where that is not the objective.
        distance: ``(kept, read)`` to ``[read]``, where there is no objective.
    """

    name: str
    unit: str
    needs: Needs
    objective: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    keep: Callable[[Tensor], Tensor] | None = None
    distance: Callable[[Tensor, Tensor], Tensor] | None = None

    def kept(self, read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
        """What of the intact output ``[read width]`` is needed to tell the effect later."""
        if self.objective is not None:
            return self.objective(read, targets, wrong)
        assert self.keep is not None
        return self.keep(read)

    def change(self, kept: Tensor, read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
        """Float64 ``[read choice]`` (``[read 1]`` for a distance): intact minus changed."""
        if self.objective is not None:
            return kept.double() - self.objective(read, targets, wrong).double()
        assert self.distance is not None
        return self.distance(kept, read).double()[:, None]


def _chosen(read: Tensor, targets: Tensor) -> Tensor:
    return read.gather(1, targets.to(read.device).clamp_min(0))


def _logit(read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
    return _chosen(read, targets)


def _log_probability(read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
    return log_probability(read, targets.to(read.device).clamp_min(0))


def _probability(read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
    return _log_probability(read, targets, wrong).exp()


def _margin(read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
    """Target minus the best other one, or minus the `wrong` class where the data names it."""
    chosen = _chosen(read, targets)
    best, second = read.topk(2, dim=-1).values.split(1, dim=-1)
    other = torch.where(chosen >= best, second, best)
    given = (wrong >= 0).to(read.device)[:, None]
    return chosen - torch.where(given, _chosen(read, wrong[:, None]), other)


def _correct(read: Tensor, targets: Tensor, wrong: Tensor) -> Tensor:
    best, broken = _best(read), _broken(read)
    right = (best[:, None] == targets.to(read.device)).float()
    return right.masked_fill(broken[:, None], torch.nan)


def _log_softmax(read: Tensor) -> Tensor:
    return torch.log_softmax(read, -1)


def _itself(read: Tensor) -> Tensor:
    return read


def jensen_shannon_bits(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``[read]``, 0 to 1: Jensen-Shannon divergence of distributions given as logarithms."""
    middle = torch.logaddexp(log_p, log_q) - _LN2
    one, other = (
        # 0 log 0 is 0; a NaN of the model stays one.
        (log.exp() * (log - middle)).masked_fill(log == -torch.inf, 0.0).sum(-1)
        for log in (log_p, log_q)
    )
    return ((one + other) / (2 * _LN2)).clamp(0.0, 1.0)


def _best(read: Tensor) -> Tensor:
    return read.argmax(-1)


def _broken(read: Tensor) -> Tensor:
    """Bool ``[read]``: there is no answer, because a logit is NaN or infinite."""
    return ~read.amax(-1).isfinite()


def _divergence(kept: Tensor, read: Tensor) -> Tensor:
    found = [
        jensen_shannon_bits(kept[rows], torch.log_softmax(read[rows], -1))
        for rows in blocks_of_rows(read)
    ]
    return torch.cat(found) if found else read.new_zeros(0)


def _flipped(kept: Tensor, read: Tensor) -> Tensor:
    return (kept != _best(read)).float().masked_fill(_broken(read), torch.nan)


def cosine_distance(kept: Tensor, read: Tensor) -> Tensor:
    """``[read]``, 0 to 2: one minus the cosine."""
    return 1 - torch.nn.functional.cosine_similarity(kept.double(), read.double(), dim=-1)


EFFECTS = {
    effect.name: effect
    for effect in (
        Effect("cross_entropy", "nats", "target", _log_probability),
        Effect("probability", "probability difference", "target", _probability),
        Effect("logit", "logits", "target", _logit),
        Effect("margin", "logits", "target", _margin),
        Effect("accuracy", "share difference", "target", _correct),
        Effect("jsd", "bits", "logits", keep=_log_softmax, distance=_divergence),
        Effect("flip", "share", "logits", keep=_best, distance=_flipped),
        Effect("cosine", "cosine distance", "features", keep=_itself, distance=cosine_distance),
        Effect("layer_cosine", "cosine distance", "block", keep=_itself, distance=cosine_distance),
        Effect("layer_jsd", "bits", "block", keep=_log_softmax, distance=_divergence),
    )
}
"""By name. ``accuracy`` has an objective but no useful gradient.

``layer_cosine`` and ``layer_jsd`` compare what the block itself gives out, at the class token or
at the reads, as the visual analytics of ViT heads does (Li et al., 2023, "How Does Attention Work
in Vision Transformers?"): nothing behind the block is run. ``layer_jsd`` takes the softmax over
the features of that vector.
"""

DIFFERENTIABLE = ("cross_entropy", "probability", "logit", "margin")


def effect_named(name: str) -> Effect:
    """The effect of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in EFFECTS:
        raise ValueError(f"An effect must be one of {', '.join(EFFECTS)}, got {name!r}.")
    return EFFECTS[name]
