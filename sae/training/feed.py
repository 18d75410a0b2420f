"""The batches that trainers are fed with, in an order that all processes share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.rank_share import RankShare
from sae.activations.shuffled_blocks import BlockState, ShuffledBlocks
from sae.activations.source import Activations, Chunk
from sae.training.checkpoint import Part
from sae.training.config import TrainConfig
from sae.training.distributed import Processes
from sae.training.interrupts import Interrupts

Step = tuple[str, Float[Tensor, "batch width"]]
_MOST_WAITING = 4
"""Batches of a site that may wait for another site's turn."""


class Feed:
    """Endless steps ``(site, x [batch width])`` of this process' part of the data.

    One process takes batches as `ShuffledBlocks` hands them out. Several must be at the same site
    at the same time, whatever rows each has: sites take turns, batches that come before their turn
    wait, and where a site gives many more than another, those beyond the fourth are left out.

    Attributes:
        norms: of rows, measured on the data read so far.
    """

    def __init__(
        self,
        source: Activations,
        config: TrainConfig,
        processes: Processes,
        interrupts: Interrupts,
        steps: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            steps: of each site that will be taken; None: those of ``config``.

        Raises:
            ValueError: fewer rows than one batch, where the source knows.
        """
        if processes.count > 1:
            source = RankShare(source, processes.rank, processes.count)
        self.norms = _Norms(source, interrupts)
        steps = config.steps(processes.count) if steps is None else steps
        self._blocks = ShuffledBlocks(
            self.norms,
            config.buffer_rows,
            config.batch_size,
            config.seed,
            wanted=steps * config.batch_size,
        )
        self._sites = list(source.widths)
        self._in_turn = processes.count > 1 and len(self._sites) > 1
        self._turn = 0
        self._waiting: dict[str, deque[Tensor]] = {site: deque() for site in self._sites}
        self._seen_ahead: BlockState | None = None

    def __iter__(self) -> Iterator[Step]:
        batches = iter(self._blocks)
        if not self._in_turn:
            yield from batches
            return
        if any(self._waiting.values()):
            batches = self._beside(batches)
        while True:
            due = self._sites[self._turn % len(self._sites)]
            while not self._waiting[due]:
                site, x = next(batches)
                if len(self._waiting[site]) < _MOST_WAITING:
                    self._waiting[site].append(x)
            x = self._waiting[due].popleft()
            self._turn += 1
            yield due, x

    def part(self) -> Part:
        """Everything to go on from, as `restore` takes it: what was yielded counts as used."""
        state = self._seen_ahead or self._blocks.state()
        tensors = {f"carry/{site}": rows for site, rows in state.carry.items()}
        for site, waiting in self._waiting.items():
            if waiting:
                tensors[f"waiting/{site}"] = torch.stack(list(waiting))
        facts = {"blocks": state.record(), "turn": self._turn, "norms": self.norms.record()}
        return Part(tensors, facts)

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on where the feed of a training with the same plan was."""
        carry = {
            name.removeprefix("carry/"): rows
            for name, rows in tensors.items()
            if name.startswith("carry/")
        }
        self._blocks.resume(BlockState.of(facts["blocks"], carry))
        for site in self._sites:
            self._waiting[site] = deque(tensors.get(f"waiting/{site}", torch.empty(0)).unbind())
        self._turn = facts["turn"]
        self.norms.restore(facts["norms"])

    def _beside(self, batches: Iterator[Step]) -> Iterator[Step]:
        """The same batches; those that wait are moved to where they lie.

        Taken up, they lie on the CPU, and trainers without a device go to where rows are.
        """
        # The first is looked at before its turn: until then it does not count as handed out.
        self._seen_ahead = self._blocks.state()
        first = next(batches)
        for waiting in self._waiting.values():
            waiting.extend([waiting.popleft().to(first[1].device) for _ in range(len(waiting))])

        def from_the_first() -> Iterator[Step]:
            self._seen_ahead = None
            yield first
            yield from batches

        return from_the_first()


class _Norms:
    """A source, and the mean norm of the rows that were read from it for the first time.

    A chunk that is read again, by a training that goes on, is not counted again. Between chunks
    an interrupt is heard.
    """

    def __init__(self, source: Activations, interrupts: Interrupts) -> None:
        self.source = source
        self._interrupts = interrupts
        self._sums = dict.fromkeys(source.widths, 0.0)
        self._counts = dict.fromkeys(source.widths, 0)
        self._read = (0, 0)
        self._open = set(source.widths)

    @property
    def widths(self) -> Mapping[str, int]:
        return self.source.widths

    @property
    def heads(self) -> Mapping[str, int]:
        return self.source.heads

    @property
    def about(self) -> Mapping[str, Any]:
        return self.source.about

    @property
    def rows(self) -> Mapping[str, int] | None:
        return getattr(self.source, "rows", None)

    def chunks(self, epoch: int, start: int = 0) -> Iterator[Chunk]:
        self._interrupts.check()
        for number, chunk in enumerate(self.source.chunks(epoch, start), start):
            if (epoch, number) >= self._read:
                self._count(chunk)
                self._read = (epoch, number + 1)
            yield chunk
            self._interrupts.check()

    def take(self, site: str, processes: Processes) -> float:
        """The mean norm of this site's rows so far, of all processes; none are counted later."""
        self._open.discard(site)
        total, count = processes.totals([self._sums[site], self._counts[site]])
        return total / count

    def record(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "counts": self._counts,
            "read": list(self._read),
            "open": sorted(self._open),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        self._sums, self._counts = dict(record["sums"]), dict(record["counts"])
        self._read = (record["read"][0], record["read"][1])
        self._open = set(record["open"])

    def _count(self, chunk: Chunk) -> None:
        for site in self._open & chunk.keys():
            rows = chunk[site]
            self._sums[site] += float(rows.float().norm(dim=1).cpu().sum(dtype=torch.float64))
            self._counts[site] += rows.shape[0]
