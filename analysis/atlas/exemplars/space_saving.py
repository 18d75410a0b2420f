"""The heaviest of a stream of weighted items in bounded memory, with the error of each.

Space-Saving (Metwally, Agrawal and El Abbadi, ICDT 2005) in the form that takes a whole batch at a
time (Agarwal et al., Mergeable Summaries, PODS 2012): what does not fit is left out, and the
largest upper bound among what was left out, the *floor*, is the error with which an item that comes
back later may have been counted. The floor is at most total / (capacity + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Heavy:
    """Items with what was counted of each since it entered.

    The true mass of an item lies between ``mass`` and ``mass + error``, that of an item that is not
    here between 0 and ``floor``. As long as there are no more items than ``capacity``, errors are 0
    and all is exact, in whatever order the batches come; beyond that, the order changes what is
    counted by no more than the errors.

    Attributes:
        codes: int64 ``[item]``, rising.
        mass, chance, count: float64 ``[item]``: sums since the item entered.
        error: float64 ``[item]``: the floor when it entered.
        total: mass of the whole stream.
    """

    capacity: int
    codes: Codes
    mass: Numbers
    chance: Numbers
    count: Numbers
    error: Numbers
    floor: float = 0.0
    total: float = 0.0

    @classmethod
    def none(cls, capacity: int) -> Heavy:
        none = np.zeros(0)
        return cls(capacity, np.zeros(0, np.int64), none, none, none, none)

    def with_batch(self, codes: Codes, mass: Numbers, chance: Numbers, count: Numbers) -> Heavy:
        """The same with the items of one batch; each code once, rising."""
        old = {name: getattr(self, name).copy() for name in ("mass", "chance", "count")}
        place = np.searchsorted(codes, self.codes)
        there = np.zeros(self.codes.size, dtype=bool)
        inside = place < codes.size
        there[inside] = codes[place[inside]] == self.codes[inside]
        again = place[there]
        for name, values in (("mass", mass), ("chance", chance), ("count", count)):
            old[name][there] += values[again]
        is_new = mass > 0
        is_new[again] = False
        room = self.capacity - self.codes.size
        new = np.nonzero(is_new)[0]
        if room <= 0:
            new = new[self.floor + mass[new] > float((old["mass"] + self.error).min())]
        if new.size > self.capacity:
            least = np.partition(mass[new], -self.capacity)[-self.capacity]
            new = new[mass[new] >= least]
        columns = {
            "codes": np.concatenate([self.codes, codes[new]]),
            "mass": np.concatenate([old["mass"], mass[new]]),
            "chance": np.concatenate([old["chance"], chance[new]]),
            "count": np.concatenate([old["count"], count[new]]),
            "error": np.concatenate([self.error, np.full(new.size, self.floor)]),
        }
        refused = is_new.copy()
        refused[new] = False
        floor = self.floor + (float(mass[refused].max()) if refused.any() else 0.0)
        return self._cut(columns, floor, self.total + float(mass.sum()))

    def _cut(self, columns: dict[str, NDArray], floor: float, total: float) -> Heavy:
        upper = columns["mass"] + columns["error"]
        codes = columns["codes"]
        strongest = np.lexsort((codes, -upper))
        kept, lost = strongest[: self.capacity], strongest[self.capacity :]
        if lost.size:
            floor = max(floor, float(upper[lost].max()))
        kept = kept[np.argsort(codes[kept])]
        return Heavy(
            self.capacity, **{name: values[kept] for name, values in columns.items()},
            floor=floor, total=total,
        )  # fmt: skip
