"""Two sets of examples side by side: names of their own, pairs, halves to choose and judge on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.importance.scans.options import ScanError
from analysis.statistics import poisson_weights
from probes.inputs import Batch

if TYPE_CHECKING:
    from analysis.importance.targets import Data

Inputs = Batch | Sequence[Batch] | Callable[[], Iterable[Batch]]
BEHAVIOUR, CONTROL = SETS = ("behaviour", "control")
FEWEST = 4
"""Examples of a set with two halves of at least 2, the fewest that have a spread."""


def as_data(inputs: Inputs, name: str) -> Data:
    """Gives the batches anew each time; ids are ``NAME:ID``, so that no two sets share one."""
    if callable(inputs):
        return lambda: (_renamed(batch, name) for batch in inputs())
    given = [inputs] if isinstance(inputs, Batch) else list(inputs)
    ids = [example.id for batch in given for example in batch.examples]
    if len(set(ids)) < len(ids) and len(given) > 1:
        # Batches of plain texts count their examples from 0 each.
        renamed = [_renamed(batch, f"{name}:{number}") for number, batch in enumerate(given)]
    else:
        renamed = [_renamed(batch, name) for batch in given]
    return lambda: renamed


def halves(ids: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Bool ``[example]``: whether heads are chosen on it, half of the examples (one more if odd).

    A function of the set of ids, not of their order.

    >>> halves(["b", "a", "d", "c", "e"], seed=0).sum()
    np.int64(3)
    """
    order = sorted(range(len(ids)), key=lambda index: (_digest(ids[index], seed), ids[index]))
    first = np.zeros(len(ids), dtype=np.bool_)
    first[order[: (len(ids) + 1) // 2]] = True
    return first


@dataclass(frozen=True)
class Halved:
    """The examples of two sets: in which order they are compared, and which half each is in.

    Attributes:
        ids: of each set, as `as_data` names them.
        rows: of each set, the rows of its values in the order of comparison: that of the set, but
            where paired that of the behaviour for both.
        first: of each set, whether heads are chosen on a row (in the order of comparison).
    """

    ids: tuple[tuple[str, ...], tuple[str, ...]]
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]
    first: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    paired: bool
    seed: int

    @classmethod
    def of(
        cls, behaviour: Sequence[str], control: Sequence[str], paired: bool, seed: int
    ) -> Halved:
        """Order the examples, pair them by id if that is asked for, and part them in halves.

        Raises:
            ScanError: an id stands twice in a set, or only in one of two paired sets.
        """
        ids = tuple(behaviour), tuple(control)
        own = tuple([name.split(":", 1)[1] for name in names] for names in ids)
        for name, mine in zip(SETS, own, strict=True):
            twice = [one for one, count in Counter(mine).items() if count > 1]
            if twice:
                raise ScanError(
                    f"Examples of the {name} must have ids of their own, {twice[0]!r} stands twice."
                )
        rows = [np.arange(len(mine)) for mine in own]
        if paired:
            alone = sorted(set(own[0]) ^ set(own[1]))
            if alone:
                where = SETS[alone[0] not in own[0]]
                raise ScanError(
                    f"Pairs must have one id in both sets, {alone[0]!r} stands in the {where} "
                    f"only ({len(alone)} such). Leave them out, or compare the sets unpaired."
                )
            place = {name: row for row, name in enumerate(own[1])}
            rows[1] = np.array([place[name] for name in own[0]], dtype=np.int64)
        names = own if paired else ids
        first = [halves(mine, seed)[order] for mine, order in zip(names, rows, strict=True)]
        return cls(ids, (rows[0], rows[1]), (first[0], first[1]), paired, seed)

    def judged(self, which: int) -> Callable[[str], bool]:
        """Whether an example of the behaviour (0) or the control (1) is in the second half."""
        chosen = self.rows[which][~self.first[which]]
        names = {self.ids[which][row] for row in chosen.tolist()}
        return lambda name: name in names

    def weights(self, replicates: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each set int ``[replicate, example]``; the two of a pair count equally often."""
        one, other = (
            np.stack([poisson_weights(name, replicates, self.seed) for name in names], axis=1)
            for names in (self.ids[0], self.ids[0] if self.paired else self.ids[1])
        )
        return one, other


def _renamed(batch: Batch, name: str) -> Batch:
    return replace(batch, examples=tuple(replace(e, id=f"{name}:{e.id}") for e in batch.examples))


def _digest(example_id: str, seed: int) -> bytes:
    text = f"{seed}\0{example_id}\0scan".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()
