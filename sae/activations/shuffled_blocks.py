"""Batches of shuffled rows of several sites, in bounded memory, that can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.epoch_order import keyed_generator
from sae.activations.row_buffer import RowBuffer
from sae.activations.source import Activations, Chunk

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class BlockState:
    """Where a stream of batches is. Small: fewer rows than one batch of each site.

    Attributes:
        epoch: passes over the data that are done.
        chunk: chunk of this pass at which the block begins.
        block: number of the block within the pass.
        handed: batches of the block that were handed out.
        batches: batches of all blocks that were handed out, by site.
        earlier: those of them that were handed out when the block began.
        carry: rows by site that were left over when the block began.
        settings: what the stream was made with; another cannot take it up.
    """

    epoch: int = 0
    chunk: int = 0
    block: int = 0
    handed: int = 0
    batches: Mapping[str, int] = field(default_factory=dict)
    earlier: Mapping[str, int] = field(default_factory=dict)
    carry: Mapping[str, Float[Tensor, "row width"]] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All but ``carry``, for JSON; `of` takes both together again."""
        numbers = {name: getattr(self, name) for name in ("epoch", "chunk", "block", "handed")}
        counts = {"batches": dict(self.batches), "earlier": dict(self.earlier)}
        return {**numbers, **counts, "settings": dict(self.settings)}

    @classmethod
    def of(cls, record: Mapping[str, Any], carry: Mapping[str, Tensor]) -> BlockState:
        """From `record` and the rows that belong to it."""
        return cls(**record, carry=dict(carry))


class ShuffledBlocks:
    """Endless steps ``(site, x [batch width])``: one pass over the data after the other.

    A block is filled with chunks until one site has ``rows`` rows or the pass ends; where
    ``wanted`` is less than ``rows``, also until each site has what is yet wanted of it. Each site's
    rows are shuffled by a generator named by seed, epoch, block and site, handed out in whole
    batches with sites taking turns, and the rest, less than a batch, goes into the next block.
    So no site ever holds more than ``rows`` rows and one chunk, whatever the length of the data,
    and `resume` gives the same batches bit for bit by filling one block again.

    Batches are float32 (float64 stays), on the device where rows are kept.
    """

    def __init__(
        self,
        source: Activations,
        rows: int,
        batch_size: int,
        seed: int = 0,
        *,
        keep_on: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        wanted: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            rows: of a site that are shuffled together; at least one batch.
            keep_on: device on which they wait; None: where the source makes them.
            dtype: in which they wait, such as bfloat16 for half the memory; None: as they come.
            wanted: rows of each site that will be asked for. None, or as many as a block has: whole
                blocks are read, so that their order does not depend on it.

        Raises:
            ValueError: no room for one batch, or (where the source knows) too few rows.
        """
        if batch_size < 1 or rows < batch_size:
            raise ValueError(
                f"A block must hold at least one batch of at least one row, got {rows} rows for "
                f"batches of {batch_size}. Raise `buffer_rows` or lower `batch_size`."
            )
        if not source.widths:
            raise ValueError("The activations must have at least one site, got none. Name one.")
        self.source, self.rows, self.batch_size, self.seed = source, rows, batch_size, seed
        self._sites = list(source.widths)
        self._buffers = {s: RowBuffer(w, keep_on, dtype) for s, w in source.widths.items()}
        self._largest = 0
        self._wanted = None if wanted is None or wanted >= rows else max(wanted, batch_size)
        self._place = BlockState(batches=dict.fromkeys(self._sites, 0), settings=self._settings)
        for site, count in (getattr(source, "rows", None) or {}).items():
            self._refuse_few(site, count)

    def state(self) -> BlockState:
        """Where the stream is: every batch that was handed out counts as done.

        Its ``carry`` lies on the CPU.
        """
        place = self._place
        carry = {site: rows.cpu() for site, rows in place.carry.items()}
        return replace(place, carry=carry, settings=self._settings)

    def resume(self, state: BlockState) -> None:
        """Go on where another stream of the same source and settings was.

        Raises:
            ValueError: it was made with other settings.
        """
        for name in {**state.settings, **self._settings}:
            was, now = state.settings.get(name), self._settings.get(name)
            if was != now:
                raise ValueError(
                    f"A stream of batches must be taken up with the settings it was begun with: "
                    f"`{name}` was {was!r}, now {now!r}. Use the same, or begin anew."
                )
        self._place = state

    def __iter__(self) -> Iterator[tuple[str, Float[Tensor, "batch width"]]]:
        while True:
            chunks = iter(self.source.chunks(self._place.epoch, self._place.chunk))
            ended = False
            while not ended:
                taken, ended = self._fill(chunks)
                yield from self._hand_out()
                self._begin_next(taken)
            self._end_pass()

    @property
    def _settings(self) -> dict[str, Any]:
        settings = {
            "rows": self.rows,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "widths": dict(self.source.widths),
        }
        # Only where it decides which rows a block has.
        return settings if self._wanted is None else {**settings, "wanted": self._wanted}

    def _fill(self, chunks: Iterator[Chunk]) -> tuple[int, bool]:
        """How many chunks went into the block, and whether there are no more."""
        chunk, taken, needed = next(chunks, None), 0, self._needed()
        for site, buffer in self._buffers.items():
            buffer.clear()
            rest = self._place.carry.get(site)
            if rest is not None:
                # Taken up, it lies on the CPU; rows stay where the source makes them.
                rest = rest if chunk is None or site not in chunk else rest.to(chunk[site].device)
                buffer.append(rest, self.rows)
        while chunk is not None:
            taken += 1
            self._largest = max(self._largest, *(rows.shape[0] for rows in chunk.values()), 0)
            for site, buffer in self._buffers.items():
                if site in chunk:
                    buffer.append(chunk[site], self.rows + self._largest)
            if any(len(buffer) >= self.rows for buffer in self._buffers.values()):
                return taken, False
            if needed is not None and all(len(self._buffers[s]) >= needed[s] for s in needed):
                return taken, False
            chunk = next(chunks, None)
        return taken, True

    def _needed(self) -> dict[str, int] | None:
        """Rows of each site after which the block is full; None: only `rows` decides.

        Whoever asks for more than was wanted is given blocks as large as that again.
        """
        if self._wanted is None:
            return None
        earlier = self._place.earlier
        left = {s: self._wanted - earlier.get(s, 0) * self.batch_size for s in self._sites}
        return left if max(left.values()) > 0 else dict.fromkeys(left, self._wanted)

    def _order(self, site: str) -> Tensor:
        place = self._place
        generator = keyed_generator(self.seed, place.epoch, place.block, site)
        return torch.randperm(len(self._buffers[site]), generator=generator)

    def _hand_out(self) -> Iterator[tuple[str, Tensor]]:
        orders = {site: self._order(site) for site in self._sites}
        handed = self._place.handed
        for site, number in _turns([len(orders[s]) // self.batch_size for s in self._sites])[
            handed:
        ]:
            name, handed = self._sites[site], handed + 1
            first = number * self.batch_size
            x = self._buffers[name].take(orders[name][first : first + self.batch_size])
            batches = {**self._place.batches, name: self._place.batches[name] + 1}
            # Before it is given: whoever asks for the state has done what it was given last.
            self._move(handed=handed, batches=batches)
            yield name, x.float() if x.dtype in _HALF else x
        # The generator above may be left at any yield; only past the last one are rests known.
        self._rests = {
            site: self._buffers[site].take(order[len(order) // self.batch_size * self.batch_size :])
            for site, order in orders.items()
            if len(order) % self.batch_size
        }

    def _begin_next(self, taken: int) -> None:
        place = self._place
        self._move(
            chunk=place.chunk + taken,
            block=place.block + 1,
            handed=0,
            earlier=place.batches,
            carry=self._rests,
        )

    def _end_pass(self) -> None:
        for site, batches in self._place.batches.items():
            if not batches:
                rest = self._place.carry.get(site)
                self._refuse_few(site, 0 if rest is None else rest.shape[0])
        self._move(epoch=self._place.epoch + 1, chunk=0, block=0)

    def _move(self, **changes: Any) -> None:
        self._place = replace(self._place, **changes)

    def _refuse_few(self, site: str, count: int) -> None:
        if count < self.batch_size:
            raise ValueError(
                f"All data together must give at least one batch of {self.batch_size} rows of "
                f"{site}, got {count}. Lower `batch_size` or give more data."
            )


def _turns(counts: list[int]) -> list[tuple[int, int]]:
    """Site and batch, those of each site spread evenly over the block.

    >>> _turns([4, 2])
    [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    every = [(site, number) for site, count in enumerate(counts) for number in range(count)]
    return sorted(every, key=lambda turn: ((turn[1] + 0.5) / counts[turn[0]], turn[0]))
