"""Per-head values of one batch, brought to examples and gathered as the batch's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.scores import BatchScores, Column
from probes.alignment import flat_positions
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch


class ScoreSheet:
    """Collects columns for the heads of many sites, per example.

    Args:
        counts: float ``[example]``: number of reads, the denominator of every column; 0 for
            examples that a tower has no position of.
        unread: says why heads of a tower are not measured, empty if they are.
    """

    def __init__(
        self, batch: Batch, counts: Tensor, unread: Callable[[str], str] | None = None
    ) -> None:
        self.batch, self.counts = batch, counts.double().cpu()
        self._unread = unread
        self._reasons: dict[tuple[str, str], str] = {}
        self._columns: list[Column] = []
        self._sums: list[list[Tensor]] = []

    def add(
        self,
        site: Site,
        measure: str,
        unit: str,
        values: Tensor,
        null: Tensor | None = None,
        variant: str = "",
        counts: Tensor | None = None,
    ) -> None:
        """One column per head, or none where the tower is not read.

        Args:
            values: ``[example head]``, sums over the example's reads.
            null: the same of the null; by default the mean of the layer's other heads.
            counts: ``[example]`` or ``[example head]``, another denominator than the number of
                reads.
        """
        why = self._unread(site.tower) if self._unread is not None else ""
        if why:
            self._reasons[site.tower, measure] = why
            return
        values = values.double().cpu()
        heads = values.shape[1]
        count = self.counts if counts is None else counts.double().cpu()
        count = count if count.ndim == 2 else count[:, None]
        count = (count * reached(self.batch, site.tower)[:, None]).expand_as(values)
        null_count = count
        if null is None:
            others = values.sum(1, keepdim=True) - values
            null = others / max(heads - 1, 1)
            null_count = count if heads > 1 else torch.zeros_like(values)
        self._columns += [
            Column(site.tower, site.layer, head, measure, variant, unit) for head in range(heads)
        ]
        self._sums.append([values, count, null.double().cpu(), null_count])

    def scores(self, reasons: Mapping[tuple[str, str], str] | None = None) -> BatchScores:
        """Everything added.

        Raises:
            ValueError: a value is NaN or infinite; the sentence names measure, tower and layer.
        """
        empty = torch.zeros(len(self.counts), 0, dtype=torch.float64)
        sums = [torch.cat([empty, *(one[i] for one in self._sums)], dim=1) for i in range(4)]
        broken = (~torch.isfinite(sums[0])).any(0).nonzero().flatten().tolist()
        if broken:
            column = self._columns[broken[0]]
            raise ValueError(
                f"{column.measure!r} of {column.tower}.L{column.layer} must be finite, got NaN or "
                "infinity in its gradient. Load the model in float32."
            )
        measured = {(column.tower, column.measure) for column in self._columns}
        told = {**(reasons or {}), **self._reasons}
        left = {key: why for key, why in told.items() if key not in measured}
        ids = tuple(example.id for example in self.batch.examples)
        return BatchScores(
            tuple(self._columns), sums[0], sums[1], sums[2], sums[3], examples=ids, reasons=left
        )


def reached(batch: Batch, tower: str) -> Tensor:
    """Bool ``[example]``: which examples have positions in a tower; all where none are known.

    An example without an image says nothing of vision heads, whether or not its batch holds images.
    """
    tokens = batch.tokens.towers.get(tower)
    if tokens is None or not len(tokens):
        return torch.ones(batch.size, dtype=torch.bool)
    known = tokens.example[tokens.example >= 0]
    return torch.bincount(known, minlength=batch.size) > 0


def examples_of(
    batch: Batch, site: Site, shape: Sequence[int], index: Tensor | None = None
) -> Tensor:
    """Long ``[row query]``: the example that each position of a site's z or queries belongs to.

    Args:
        shape: ``[row query]``.
        index: flat positions in the token map where they are known, -1 for none; by default
            those of the whole z.

    Raises:
        ValueError: rows cannot be told apart.
    """
    rows, length = shape
    tokens = batch.tokens.towers.get(site.tower)
    if index is None and tokens is not None:
        index = flat_positions(tokens, rows, length, packed=True)
    if index is not None and tokens is not None and bool((index >= 0).all()):
        return tokens.example[index.cpu()]
    if batch.size == 0 or rows % batch.size:
        raise ValueError(
            f"The {rows} rows of {site} must be a multiple of the {batch.size} examples to tell "
            "them apart. Score one example at a time."
        )
    return torch.arange(rows)[:, None].expand(rows, length) // (rows // batch.size)


def per_example(values: Tensor, example: Tensor, examples: int) -> Tensor:
    """Float64 ``[example head]``: the sum of ``values [row query head]`` over each example.

    Args:
        example: long ``[row query]``; -1 counts nowhere.
    """
    flat = values.double().flatten(0, 1)
    where = example.flatten().to(flat.device) % (examples + 1)
    total = flat.new_zeros(examples + 1, flat.shape[1])
    return total.index_add_(0, where, flat)[:-1]
