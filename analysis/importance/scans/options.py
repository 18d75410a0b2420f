"""What is compared in a scan, where, and how it is confirmed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.importance.behaviours.places import LAST, WHERE, Where
from analysis.importance.scans.permutation import PERMUTATIONS
from analysis.statistics import REPLICATES

ACTIVITY = "activity"
TOP = (1, 2, 4, 8)
RANDOMS = 20
Side = Literal["more", "less", "either"]
SIDES = ("more", "less", "either")


class ScanError(ValueError):
    """What was asked of a scan cannot be had on this model or data; the sentence says what can."""


@dataclass(frozen=True)
class ScanOptions:
    """How two sets of inputs are compared head by head.

    Attributes:
        measure: ``activity`` (the length of what a head writes), or a streaming measure.
        variant: of that measure, where it has several.
        towers: those to scan; empty for the one that writes, else all.
        where: for activity: which positions stand for an example, see
            `analysis.importance.behaviours.places.places`; empty for ``answer`` where examples have
            one, else ``last``.
        last: how many positions ``where="last"`` takes.
        paired: examples of one id in the two sets belong together (the same template).
        side: which heads are taken away together: those with a higher value on the behaviour
            (``more``), a lower one (``less``), or the farthest apart (``either``).
        top: how many; with none nothing is confirmed.
        randoms: most random sets of heads per size, with as many in each layer.
        permutations: random splits of the examples, where there are more than so many.
    """

    measure: str = ACTIVITY
    variant: str = ""
    towers: tuple[str, ...] = ()
    where: Where | Literal[""] = ""
    last: int = LAST
    paired: bool = False
    side: Side = "more"
    top: tuple[int, ...] = TOP
    randoms: int = RANDOMS
    permutations: int = PERMUTATIONS
    replicates: int = REPLICATES

    def __post_init__(self) -> None:
        for name, known in (("where", WHERE), ("side", SIDES)):
            if getattr(self, name) not in known and (name, self.where) != ("where", ""):
                raise ScanError(
                    f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        for name in ("last", "randoms", "permutations", "replicates"):
            if getattr(self, name) < 1:
                raise ScanError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for size in self.top:
            if size < 1:
                raise ScanError(f"`top` must hold numbers of heads of at least 1, got {size}.")
        if self.measure == ACTIVITY and self.variant:
            raise ScanError(
                f"`variant` must be one of a measure, and activity has none, got {self.variant!r}."
            )
        if self.measure != ACTIVITY and (self.where, self.last) != ("", LAST):
            raise ScanError(
                f"`where` and `last` must be left alone with measure {self.measure!r}, which says "
                "itself which positions count. They are for activity."
            )
