"""An even sample of queries of one layer, with their events and what each head gave out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.exemplars.events import EVENT, Events

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Drawn:
    """The queries with the smallest keys of all that were seen: an even sample of the data.

    Keys are those of `position_keys`, so that what is drawn depends neither on the order of the
    data nor on the layer: layers whose queries are the same draw the same ones.

    Attributes:
        size: how many are kept.
        keys: int64 ``[query]``, rising.
        events: criterion -> `EVENT` ``[query head]``.
        z: float32 ``[query head width]``.
    """

    size: int
    keys: NDArray[np.int64]
    events: dict[str, Events]
    z: Array

    @classmethod
    def none(cls, size: int, heads: int, width: int, criteria: tuple[str, ...]) -> Drawn:
        events = {name: np.zeros((0, heads), dtype=EVENT) for name in criteria}
        return cls(size, np.zeros(0, np.int64), events, np.zeros((0, heads, width), np.float32))

    def entering(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these queries would be kept: indices into ``keys``."""
        if self.keys.size == self.size:
            few = np.nonzero(keys < self.keys[-1])[0]
        else:
            few = np.arange(keys.size)
        return few[np.argsort(keys[few], kind="stable")][: self.size]

    def with_queries(self, keys: NDArray[np.int64], events: dict[str, Events], z: Array) -> Drawn:
        """These queries too, as far as they are kept; see `entering`."""
        if not keys.size:
            return self
        everything = np.concatenate([self.keys, keys])
        kept = np.argsort(everything, kind="stable")[: self.size]
        return Drawn(
            self.size,
            everything[kept],
            {name: np.concatenate([old, events[name]])[kept] for name, old in self.events.items()},
            np.concatenate([self.z, z])[kept],
        )
