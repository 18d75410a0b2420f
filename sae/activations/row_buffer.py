"""Memory for the rows of one site that are shuffled together, used again block after block."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class RowBuffer:
    """Rows in one piece of memory, which grows to what the largest block needs and no further."""

    def __init__(
        self, width: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Nothing is taken yet.

        Args:
            device, dtype: how rows are kept; None: as the first ones come, while it is empty.
        """
        self._width, self._device, self._dtype = width, device, dtype
        self._memory: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        """Rows for which there is memory."""
        return 0 if self._memory is None else self._memory.shape[0]

    def clear(self) -> None:
        """Hold no rows; the memory stays."""
        self._count = 0

    def append(self, rows: Float[Tensor, "row width"], most: int) -> None:
        """Copy rows to the end.

        Args:
            most: rows that a block has at most, so that growing does not overshoot.
        """
        needed = self._count + rows.shape[0]
        if rows.shape[0] == 0:
            return
        if not self._count and self._device is None and self._memory is not None:
            self._memory = self._memory if self._memory.device == rows.device else None
        if self._memory is None or needed > self.capacity:
            self._grow(max(needed, min(2 * self.capacity, most)), rows)
        assert self._memory is not None
        self._memory[self._count : needed].copy_(rows)
        self._count = needed

    def take(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Copies of some rows."""
        assert self._memory is not None
        return self._memory.index_select(0, index.to(self._memory.device))

    def _grow(self, capacity: int, like: Tensor) -> None:
        device = like.device if self._device is None else self._device
        dtype = like.dtype if self._dtype is None else self._dtype
        if self._memory is not None:
            device, dtype = self._memory.device, self._memory.dtype
        larger = torch.empty(capacity, self._width, device=device, dtype=dtype)
        if self._memory is not None:
            larger[: self._count].copy_(self._memory[: self._count])
        self._memory = larger
