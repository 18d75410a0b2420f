"""Compare changed outputs with the intact one at the reads of a batch: effects per example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.effects import Effect
from analysis.importance.readings import Reading, ReadingError
from probes.alignment import flat_positions
from probes.heads import Site
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from probes.replay import RecordedForward

Changes = dict[str, Tensor]
"""Effect -> float64 ``[example choice]``: sum over the example's reads; choice 1 is the null's."""

_CLS = ROLES.index("cls")
_PAD = ROLES.index("pad")


class Comparison:
    """The intact output of a batch, kept as far as some effects need it.

    Args:
        effects: what to tell.
        recorded: the intact forward.
        reading: where it is read.

    Raises:
        ReadingError: the intact output is not finite; the sentence names the first layer in which
            head outputs are not.
    """

    def __init__(
        self, effects: Sequence[Effect], recorded: RecordedForward, reading: Reading
    ) -> None:
        self.reading, self.recorded = reading, recorded
        self.on_output = [effect for effect in effects if effect.needs != "block"]
        self.on_block = [effect for effect in effects if effect.needs == "block"]
        targets = [reading.target]
        if bool((reading.shuffled >= 0).all()) and reading.reads:
            targets.append(reading.shuffled)
        self._targets = torch.stack(targets, dim=1)
        self._kept: dict[tuple[str, str], Tensor] = {}

    def changes(self, output: Any, tower: str) -> Changes:
        """What each effect on the output makes of a changed output."""
        read = self.reading.of(output, self.recorded.positions, tower)
        found = {}
        for effect in self.on_output:
            kept = self._of_intact(effect, tower)
            change = effect.change(kept, read, self._targets, self.reading.wrong)
            found[effect.name] = self.reading.per_example(change).cpu()
        return found

    def changes_of_copies(self, output: Any, tower: str, copies: int) -> list[Changes]:
        """The same for an output that holds several changed copies of the batch, one by one."""
        size, reads = self.reading.examples, self.reading.reads
        step = torch.arange(copies).repeat_interleave(reads)
        wide = replace(
            self.reading,
            examples=size * copies,
            example=self.reading.example.repeat(copies) + step * size,
            position=self.reading.position.repeat(copies),
        )
        read = wide.of(output, self.recorded.positions, tower)
        found: list[Changes] = []
        for part in read.split(reads):
            one = {}
            for effect in self.on_output:
                kept = self._of_intact(effect, tower)
                change = effect.change(kept, part, self._targets, self.reading.wrong)
                one[effect.name] = self.reading.per_example(change).cpu()
            found.append(one)
        return found

    def block_changes(self, site: Site, block: Tensor) -> Changes:
        """What each effect on the block makes of a changed output of a site's block."""
        found = {}
        for effect in self.on_block:
            key = (effect.name, str(site))
            if key not in self._kept:
                intact = self._block_reads(site, self.recorded.block_output(site))
                self._kept[key] = effect.kept(intact, self._targets, self.reading.wrong)
            changed = self._block_reads(site, block)
            change = effect.change(self._kept[key], changed, self._targets, self.reading.wrong)
            found[effect.name] = self._per_example_of_block(site, change)
        return found

    def block_counts(self, site: Site) -> Tensor:
        """Float64 ``[example]``: how many vectors of a block are compared for each example."""
        example, _, _ = self._block_places(site)
        return torch.bincount(example, minlength=self.reading.examples).double()

    def _of_intact(self, effect: Effect, tower: str) -> Tensor:
        name = tower if self.reading.kind == "features" else ""
        key = (effect.name, name)
        if key not in self._kept:
            read = self.reading.of(self.recorded.output, self.recorded.positions, tower)
            if not bool(torch.isfinite(read).all()):
                raise ReadingError(_not_finite(self.recorded))
            self._kept[key] = effect.kept(read, self._targets, self.reading.wrong)
        return self._kept[key]

    def _per_example_of_block(self, site: Site, change: Tensor) -> Tensor:
        example, _, _ = self._block_places(site)
        total = torch.zeros(self.reading.examples, change.shape[1], dtype=torch.float64)
        return total.index_add(0, example, change.double().cpu())

    def _block_reads(self, site: Site, block: Tensor) -> Tensor:
        """Float32 ``[read width]``: the block's output where it is compared."""
        _, row, position = self._block_places(site)
        block = _by_row(block)
        return block[row.to(block.device), position.to(block.device)].float()

    def _block_places(self, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Example, row and position of each compared vector: reads, class tokens, else all."""
        reading = self.reading
        block = _by_row(self.recorded.block_output(site))
        rows, length = block.shape[0], block.shape[1]
        if reading.kind == "tokens" and site.tower in ("language", "decoder"):
            return reading.example, reading.example, reading.position
        tokens = self.recorded.batch.tokens
        index = None
        if site.tower in tokens:
            index = flat_positions(tokens[site.tower], rows, length, packed=True)
        if index is None:
            if rows != reading.examples:
                raise ReadingError(
                    f"The block of {site} must give one sequence per example, got {rows} for "
                    f"{reading.examples}. Choose an effect on the model's output."
                )
            every = torch.arange(rows).repeat_interleave(length)
            return every, every, torch.arange(length).repeat(rows)
        role = tokens[site.tower].role[index]
        chosen = role == _CLS
        if not bool(chosen.any()):
            chosen = role != _PAD
        row, position = chosen.nonzero().T
        return tokens[site.tower].example[index[row, position]], row, position


def _by_row(block: Tensor) -> Tensor:
    """``[row position width]``; a tower that packs all its images has one row."""
    return block[None] if block.ndim == 2 else block


def _not_finite(recorded: RecordedForward) -> str:
    bad = [str(site) for site, z in recorded.z.items() if not bool(torch.isfinite(z).all())]
    where = f"first in the head outputs of {bad[0]}" if bad else "behind the last attention layer"
    return (
        f"The output of the intact model must be finite, got NaN or infinity, {where}. "
        "Check its weights, or load it in float32."
    )
