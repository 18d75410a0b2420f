"""What a batch of examples scored: sums per example and column, and curves, all mergeable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from analysis.touched import Place, Touched, from_json, merged, to_json

_SUMS = ("numerator", "denominator", "null_numerator", "null_denominator")


@dataclass(frozen=True)
class Column:
    """One number per example: a measure (and variant) of one head."""

    tower: str
    layer: int
    head: int
    measure: str
    variant: str
    unit: str


@dataclass
class Curve:
    """A profile per head, as sums over all examples: hop mass by hop, sink weight by key.

    Attributes:
        axis: what the points count, for example ``"hop"``; point 0 is value 0 of it.
        numerator, denominator: float64 ``[head point]``; the curve is their ratio, NaN at 0 / 0.
            A denominator that is the same at all points is ``[head 1]``: it counts for points
            that only other batches have, too.
        null_numerator, null_denominator: float64 ``[point]``, the same on the uniform pattern.
    """

    tower: str
    layer: int
    measure: str
    axis: str
    numerator: Tensor
    denominator: Tensor
    null_numerator: Tensor
    null_denominator: Tensor

    @property
    def key(self) -> tuple[str, int, str]:
        return self.tower, self.layer, self.measure

    @property
    def value(self) -> Tensor:
        """Float64 ``[head point]``."""
        return self.numerator / self.denominator

    @property
    def null(self) -> Tensor:
        """Float64 ``[point]``."""
        return self.null_numerator / self.null_denominator

    def __add__(self, other: Curve) -> Curve:
        sums = {name: add_padded(getattr(self, name), getattr(other, name)) for name in _SUMS}
        return Curve(self.tower, self.layer, self.measure, self.axis, **sums)


@dataclass
class BatchScores:
    """Per-example sums of every column, and curves summed over the examples.

    The value of a column over any set of examples is ``sum numerator / sum denominator``; an
    example that a column does not concern holds 0 in both.

    Attributes:
        columns: what each column is.
        numerator, denominator: float64 ``[example column]``.
        null_numerator, null_denominator: float64 ``[example column]``: the null of the measure.
        curves: by tower, layer and measure.
        examples: the examples' ids.
        reasons: ``(tower, measure)`` -> why it was not measured there, one sentence.
        touched: by tower, layer, measure and variant, for measures that change head outputs: what
            they changed in these examples.
    """

    columns: tuple[Column, ...]
    numerator: Tensor
    denominator: Tensor
    null_numerator: Tensor
    null_denominator: Tensor
    curves: dict[tuple[str, int, str], Curve] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    touched: dict[Place, Touched] = field(default_factory=dict)

    @property
    def values(self) -> Tensor:
        """Float64 ``[column]`` over all examples, NaN where nothing was measured."""
        return self.numerator.sum(0) / self.denominator.sum(0)

    @property
    def null_values(self) -> Tensor:
        """Float64 ``[column]``: the null over all examples."""
        return self.null_numerator.sum(0) / self.null_denominator.sum(0)

    @classmethod
    def merge(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """The scores of all examples of all parts, in order; columns are the union.

        Raises:
            ValueError: if there is nothing to merge.
        """
        if not parts:
            raise ValueError("There must be at least one batch to merge, got none.")
        columns = tuple(dict.fromkeys(column for part in parts for column in part.columns))
        place = {column: index for index, column in enumerate(columns)}
        sums = {}
        for name in _SUMS:
            blocks = []
            for part in parts:
                block = getattr(part, name)
                if part.columns != columns:
                    index = torch.tensor([place[c] for c in part.columns], dtype=torch.long)
                    wide = block.new_zeros(block.shape[0], len(columns))
                    block = wide.index_copy(1, index, block)
                blocks.append(block)
            sums[name] = torch.cat(blocks)
        curves: dict[tuple[str, int, str], Curve] = {}
        reasons: dict[tuple[str, str], str] = {}
        for part in parts:
            for key, curve in part.curves.items():
                curves[key] = curves[key] + curve if key in curves else curve
            reasons.update(part.reasons)
        measured = {(column.tower, column.measure) for column in columns}
        return cls(
            columns=columns,
            curves=curves,
            examples=tuple(example for part in parts for example in part.examples),
            reasons={key: why for key, why in reasons.items() if key not in measured},
            touched=merged([part.touched for part in parts]),
            **sums,
        )

    @classmethod
    def beside(cls, parts: Sequence[BatchScores]) -> BatchScores:
        """One block of scores from several of the same examples, each with columns of its own.

        Raises:
            ValueError: there is nothing to join, or the examples differ.
        """
        if not parts:
            raise ValueError("There must be at least one block of scores to join, got none.")
        if any(part.examples != parts[0].examples for part in parts):
            raise ValueError("Scores that are joined must be of the same examples in one order.")
        sums = {
            name: torch.cat([getattr(part, name).double().cpu() for part in parts], dim=1)
            for name in _SUMS
        }
        return cls(
            columns=tuple(column for part in parts for column in part.columns),
            curves={key: curve for part in parts for key, curve in part.curves.items()},
            examples=parts[0].examples,
            reasons={key: why for part in parts for key, why in part.reasons.items()},
            touched={place: one for part in parts for place, one in part.touched.items()},
            **sums,
        )

    @classmethod
    def nothing(
        cls, examples: Sequence[str], reasons: Mapping[tuple[str, str], str] | None = None
    ) -> BatchScores:
        """No columns for some examples, and why: for what is not measured on them."""
        empty = torch.zeros(len(examples), 0, dtype=torch.float64)
        sums = dict.fromkeys(_SUMS, empty)
        return cls((), examples=tuple(examples), reasons=dict(reasons or {}), **sums)

    def only(
        self, measures: Iterable[str] | None = None, examples: Sequence[int] | None = None
    ) -> BatchScores:
        """The columns of some measures, and some rows; curves, reasons, touched are left out."""
        wanted = None if measures is None else set(measures)
        kept = [i for i, c in enumerate(self.columns) if wanted is None or c.measure in wanted]
        rows = list(range(len(self.examples))) if examples is None else list(examples)
        sums = {name: getattr(self, name)[rows][:, kept] for name in _SUMS}
        names = tuple(self.examples[row] for row in rows)
        return BatchScores(tuple(self.columns[i] for i in kept), examples=names, **sums)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a JSON-able description, for a shard's file."""
        tensors = {name: getattr(self, name) for name in _SUMS}
        described = []
        for number, curve in enumerate(self.curves.values()):
            tensors.update({f"curve.{number}.{name}": getattr(curve, name) for name in _SUMS})
            described.append([curve.tower, curve.layer, curve.measure, curve.axis])
        about = {
            "columns": [
                [c.tower, c.layer, c.head, c.measure, c.variant, c.unit] for c in self.columns
            ],
            "curves": described,
            "examples": list(self.examples),
            "reasons": [[*key, why] for key, why in self.reasons.items()],
            "touched": to_json(self.touched),
        }
        return tensors, about

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> BatchScores:
        """The inverse of `to_tensors`."""
        curves = {}
        for number, (tower, layer, measure, axis) in enumerate(about["curves"]):
            sums = {name: tensors[f"curve.{number}.{name}"] for name in _SUMS}
            curve = Curve(tower, layer, measure, axis, **sums)
            curves[curve.key] = curve
        return cls(
            columns=tuple(Column(*values) for values in about["columns"]),
            curves=curves,
            examples=tuple(about["examples"]),
            reasons={(tower, measure): why for tower, measure, why in about["reasons"]},
            touched=from_json(about.get("touched", [])),
            **{name: tensors[name] for name in _SUMS},
        )


def add_padded(left: Tensor, right: Tensor) -> Tensor:
    """The sum of two tensors ``[... point]`` of which the shorter is continued with zeros."""
    if left.shape[-1] < right.shape[-1]:
        left, right = right, left
    total = left.clone()
    total[..., : right.shape[-1]] += right
    return total
