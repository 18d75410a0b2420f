"""Losses of an intact, a spliced and an ablated model, summed over examples and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from analysis.statistics import LEVEL, REPLICATES, RatioSums
from sae.judging.losses import PerExample

STATES = ("clean", "spliced", "zero", "mean")
REFERENCES = ("zero", "mean")
_ROUNDING = 1e-6
"""Of the losses: differences below this share of them are rounding in float32."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval over examples.

    Attributes:
        value: None where it is not measured.
        low, high: of a 95 % bootstrap interval; None with fewer than 2 examples.
        reason: why it is not measured, else empty.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class LossRecovered:
    """One loss with a coder spliced in, beside the intact model and two ablations of the site.

    Attributes:
        examples, reads: what it is a mean over.
        clean, spliced, zero, mean: the loss per read: intact, with the reconstruction, with z = 0,
            with z = its mean over the data; None where the output is not finite then.
        increase: ``spliced - clean``, per read.
        of_zero: ``(zero - spliced) / (zero - clean)``: 1 if nothing is lost, 0 if as much as
            without the site, negative if more. Not measured where taking the site away does not
            clearly cost anything.
        of_mean: the same against the mean. The stricter one: a constant that later layers rely on
            does not count as recovered.
    """

    loss: str
    unit: str
    examples: int
    reads: int
    clean: float
    spliced: float
    zero: float | None
    mean: float | None
    increase: Estimate
    of_zero: Estimate
    of_mean: Estimate

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class LossSums:
    """Sums over examples of one loss of one coder; ratios are of sums, never means of ratios."""

    def __init__(self, *, replicates: int = REPLICATES, seed: int = 0) -> None:
        """Nothing was seen yet."""
        self._sums = RatioSums.empty(len(_COLUMNS), replicates=replicates, seed=seed)
        self._reads = 0.0
        self._broken: set[str] = set()

    def add(
        self, ids: Sequence[str], told: Mapping[str, PerExample], counted: Tensor, where: str
    ) -> None:
        """Count a batch.

        Args:
            told: sum and reads of each example in each state.
            counted: bool ``[example]``: which examples count.
            where: names the coder, for errors.

        Raises:
            ValueError: the intact or the spliced output is not finite.
        """
        reads = torch.where(counted, told["clean"][1], 0.0)
        loss = {}
        for state in STATES:
            total = torch.where(reads > 0, told[state][0], 0.0)
            bad = ~total.isfinite()
            if bool(bad.any()):
                if state not in REFERENCES:
                    raise ValueError(
                        f"The {state} output must be finite, got NaN or infinity at "
                        f"{ids[int(bad.nonzero()[0, 0])]!r} ({where}). Load the model in float32, "
                        "or look at the coder."
                    )
                self._broken.add(state)
                total = torch.zeros_like(total)
            loss[state] = total
        self._reads += float(reads.sum())
        top, bottom = (
            torch.stack([pick(loss, reads) for pick in picks], dim=1).numpy()
            for picks in zip(*_COLUMNS.values(), strict=True)
        )
        self._sums.add(ids, top, bottom)

    def result(self, loss: str, unit: str, where: str) -> LossRecovered:
        """Of all examples so far.

        Args:
            where: names the coder and its site.

        Raises:
            ValueError: nothing was read.
        """
        if not self._reads:
            raise ValueError(
                f"There must be something to read for {loss} at {where}, the data has nothing: no "
                "example reaches the site, or none has a target. Give other data."
            )
        value = dict(zip(_COLUMNS, self._sums.value.tolist(), strict=True))
        of = {state: self._against(state, loss, unit) for state in REFERENCES}
        return LossRecovered(
            loss=loss,
            unit=unit,
            examples=int(self._sums.n[0]),
            reads=round(self._reads),
            clean=value["clean"],
            spliced=value["spliced"],
            zero=None if "zero" in self._broken else value["zero"],
            mean=None if "mean" in self._broken else value["mean"],
            increase=self._estimate("increase"),
            of_zero=of["zero"],
            of_mean=of["mean"],
        )

    def _against(self, state: str, loss: str, unit: str) -> Estimate:
        if state in self._broken:
            return Estimate(None, reason=f"The output is not finite under {state} ablation.")
        cost, column = self._estimate(f"cost_{state}"), list(_COLUMNS).index(state)
        if cost.value is None or cost.low is None:
            return Estimate(
                None, reason="At least 2 examples must be read to tell what the site is worth."
            )
        size = abs(self._sums.value[0]) + abs(self._sums.value[column])
        if not (cost.low > 0 and cost.value > _ROUNDING * size):
            return Estimate(
                None,
                reason=(
                    f"Taking the site away ({state} ablation) must clearly cost the model "
                    f"something, it changes {loss} by {cost.value:.3g} {unit} "
                    f"[{cost.low:.3g}, {cost.high:.3g}]: there is nothing to recover."
                ),
            )
        return self._estimate(f"of_{state}")

    def _estimate(self, name: str) -> Estimate:
        column = list(_COLUMNS).index(name)
        low, high = self._sums.interval(LEVEL)
        return Estimate(float(self._sums.value[column]), _known(low[column]), _known(high[column]))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _reads(_: Mapping[str, Tensor], reads: Tensor) -> Tensor:
    return reads


def _minus(first: str, second: str):
    return lambda loss, _: loss[first] - loss[second]


def _loss(state: str):
    return lambda loss, _: loss[state]


_COLUMNS = {
    **{state: (_loss(state), _reads) for state in STATES},
    "increase": (_minus("spliced", "clean"), _reads),
    "cost_zero": (_minus("zero", "clean"), _reads),
    "cost_mean": (_minus("mean", "clean"), _reads),
    "of_zero": (_minus("zero", "spliced"), _minus("zero", "clean")),
    "of_mean": (_minus("mean", "spliced"), _minus("mean", "clean")),
}
"""What is summed over examples: numerator and denominator of each."""
