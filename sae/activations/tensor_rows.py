"""Rows that exist already: a tensor, several by site, or a stream of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from sae.activations.epoch_order import keyed_generator, shuffled
from sae.activations.finite_rows import refuse_nonfinite
from sae.activations.provenance import digest_of_tensor
from sae.activations.source import Chunk

Stream = Iterable[Tensor] | Callable[[int], Iterable[Tensor]]
CHUNK_ROWS = 16_384


class TensorActivations:
    """Rows of head outputs that the user has, as `sae.activations.source.Activations`."""

    def __init__(
        self,
        x: Tensor | Mapping[str, Tensor] | Stream,
        name: str = "input",
        heads: int | Mapping[str, int] = 1,
        *,
        chunk_rows: int = CHUNK_ROWS,
        seed: int | None = 0,
    ) -> None:
        """Look at the rows; of a stream the first chunk is taken to see its width.

        Args:
            x: ``[row width]``; or such tensors by site; or chunks ``[row width]`` of one site: a
                sequence, anything that can be gone through, or a function from the epoch to that.
            name: of the site, where it is one.
            heads: into how many heads a row is split, of all sites or by site.
            chunk_rows: rows of a chunk of a tensor.
            seed: of the order of rows (of chunks, of a sequence), which also depends on the
                epoch; None, and other streams: as it is.

        Raises:
            ValueError: not ``[row width]``, no rows, or a width that heads do not divide.
        """
        self.seed, self._chunk_rows = seed, chunk_rows
        self._tensors: dict[str, Tensor] = {}
        self._stream: Stream | None = None
        if isinstance(x, Tensor):
            self._tensors[name] = x
        elif isinstance(x, Mapping):
            self._tensors.update(x)  # pyright: ignore[reportArgumentType, reportCallIssue]
        else:
            self._stream = x
        self._used = False
        first = self._tensors or {name: self._first()}
        for site, rows in first.items():
            _refuse_shape(site, rows)
        self.widths: dict[str, int] = {site: rows.shape[1] for site, rows in first.items()}
        of = heads if isinstance(heads, Mapping) else dict.fromkeys(first, heads)
        self.heads: dict[str, int] = {site: of[site] for site in first}
        for site, width in self.widths.items():
            if self.heads[site] < 1 or width % self.heads[site]:
                raise ValueError(
                    f"`heads` must divide the width of {site!r}, {width}, got "
                    f"{self.heads[site]}. Give the number of heads, or 1."
                )

    @property
    def rows(self) -> dict[str, int] | None:
        """How many rows each site has; None of a stream."""
        if self._stream is not None:
            return None
        return {site: rows.shape[0] for site, rows in self._tensors.items()}

    @property
    def about(self) -> dict[str, Any]:
        """Shapes and digests of tensors; of a stream, only that it is one."""
        return self._about

    @cached_property
    def _about(self) -> dict[str, Any]:
        if self._stream is not None:
            return {"data": {"name": "stream of tensors"}, "sites": list(self.widths)}
        return {
            "data": {
                "name": "tensors",
                "rows": self.rows,
                "digest": {s: digest_of_tensor(x).hex() for s, x in self._tensors.items()},
            },
            "sites": list(self.widths),
            "chunk_rows": self._chunk_rows,
            "seed": self.seed,
        }

    def chunks(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Chunk]:
        """One pass over the rows, from chunk ``start`` on; with ``every``, each n-th of the rest.

        Raises:
            ValueError: rows that are not finite; a stream that is at its end.
        """
        if self._stream is None:
            found = self._sliced(epoch, start, every)
        else:
            found = islice(enumerate(self._streamed(epoch)), start, None, every)
        for number, chunk in found:
            for site, rows in chunk.items():
                if rows.ndim != 2 or rows.shape[1] != self.widths[site]:
                    raise ValueError(
                        f"Rows of {site!r} must be [row {self.widths[site]}], got "
                        f"{list(rows.shape)} in chunk {number}. Give chunks of one width."
                    )
                refuse_nonfinite(site, rows, f"chunk {number} of epoch {epoch}")
            yield chunk

    def _sliced(self, epoch: int, start: int, every: int) -> Iterator[tuple[int, Chunk]]:
        count = max(-(-rows.shape[0] // self._chunk_rows) for rows in self._tensors.values())
        order: dict[str, Tensor] = {}
        if self.seed is not None:
            for site, rows in self._tensors.items():
                generator = keyed_generator(self.seed, epoch, site)
                order[site] = torch.randperm(rows.shape[0], generator=generator)
        for number in range(start, count, every):
            chunk = {}
            for site, rows in self._tensors.items():
                # Sites of fewer rows are spread over as many chunks.
                low, high = (rows.shape[0] * end // count for end in (number, number + 1))
                if order:
                    chunk[site] = rows.index_select(0, order[site][low:high].to(rows.device))
                else:
                    chunk[site] = rows[low:high]
            yield number, chunk

    def _streamed(self, epoch: int) -> Iterator[Chunk]:
        (site,) = self.widths
        stream = self._stream
        if isinstance(stream, Sequence):
            for index in shuffled(len(stream), self.seed, epoch):
                yield {site: stream[index]}
            return
        yield from ({site: rows} for rows in self._opened(epoch))

    def _opened(self, epoch: int) -> Iterable[Tensor]:
        assert self._stream is not None
        if callable(self._stream):
            return self._stream(epoch)
        if isinstance(self._stream, Iterator):
            if self._used:
                raise ValueError(
                    "The rows must be gone through again, but the stream that was given is at its "
                    "end. Give a list, or a function that makes the stream of an epoch."
                )
            self._used = True
        return self._stream

    def _first(self) -> Tensor:
        stream = self._stream
        if not callable(stream) and not isinstance(stream, Iterable):
            raise ValueError(
                "Rows must be a tensor [row width], tensors by site, or a stream of tensors, got "
                f"{type(stream).__name__}. Give one of those."
            )
        source = stream(0) if callable(stream) else stream
        found = next(iter(source), None)
        if found is None:
            raise ValueError("The stream of rows must hold at least one chunk, got none.")
        if isinstance(stream, Iterator):
            self._stream = chain([found], stream)
        return found


def _refuse_shape(site: str, rows: Any) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.ndim != 2:
        got = f"{list(rows.shape)} of {rows.dtype}" if isinstance(rows, Tensor) else type(rows)
        raise ValueError(
            f"Rows of {site!r} must be a floating tensor [row width], got {got}. Flatten batch and "
            "position into rows, and heads into the width."
        )
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise ValueError(f"{site!r} must have at least one row, got {list(rows.shape)}.")
