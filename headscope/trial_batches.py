"""Which batches a dry run tries, and how many there will be of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headscope.batching import length_of, longest_first, shard_size

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.subject import Subject

_LOOKING_SECONDS = 2.0
"""Most time spent on finding out which examples can be prepared."""

Group = list["Example"]


@dataclass(frozen=True)
class Trial:
    """Batches as the run will make them, as far as it is known which examples can be prepared.

    Attributes:
        groups: the examples of each batch, the most work first.
        share: of these examples, how many can be prepared as far as was tried, 0 to 1.
    """

    groups: list[Group]
    share: float

    @classmethod
    def of(cls, subject: Subject, examples: Sequence[Example], batch_size: int) -> Trial:
        """Try examples in a random order, for a few seconds at most, and group the rest."""
        unfit, tried = _unfit(subject, examples)
        size = shard_size(batch_size)
        groups = [
            group
            for start in range(0, len(examples), size)
            for group in _grouped(examples[start : start + size], batch_size, unfit)
        ]
        left = len(examples) - len(unfit)
        share = (tried - len(unfit)) / tried if tried else 0.0
        expected = tried - len(unfit) + share * (len(examples) - tried)
        return cls(_by_work(groups), expected / left if left else 0.0)

    @property
    def examples(self) -> float:
        """How many examples will be scored, about."""
        return self.share * sum(map(len, self.groups))

    @property
    def batches(self) -> float:
        """In how many batches, about."""
        return self.share * len(self.groups)

    def tried(self, count: int) -> list[Group]:
        """The batch with the most work, and ``count - 1`` more, evenly spread over the others."""
        rest = self.groups[1:]
        step = len(rest) / max(count - 1, 1)
        chosen = {int((number + 0.5) * step) for number in range(count - 1)} if rest else set()
        return self.groups[:1] + [rest[index] for index in sorted(chosen)]

    def regrouped(self, batch_size: int) -> Trial:
        """The same examples, in batches over the borders of shards."""
        every = [example for group in self.groups for example in group]
        return Trial(_by_work(_grouped(every, batch_size, set())), self.share)

    def with_half(self, half: int, seed: int) -> float:
        """How many batches hold examples of a half (`half_of`), about."""
        from analysis.statistics import half_of

        found = sum(any(half_of(e.id, seed) == half for e in group) for group in self.groups)
        return self.share * found


def _unfit(subject: Subject, examples: Sequence[Example]) -> tuple[set[str], int]:
    """Ids of examples that cannot be prepared, and how many were tried."""
    unfit: set[str] = set()
    deadline = time.monotonic() + _LOOKING_SECONDS
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    for tried, index in enumerate(order):
        if time.monotonic() > deadline:
            return unfit, tried
        try:
            subject.prepare(examples=[examples[index]])
        except (ValueError, OSError):
            unfit.add(examples[index].id)
    return unfit, len(order)


def _grouped(examples: Sequence[Example], size: int, unfit: set[str]) -> list[Group]:
    ordered = longest_first(examples)
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    kept = [[example for example in group if example.id not in unfit] for group in groups]
    return [group for group in kept if group]


def _by_work(groups: list[Group]) -> list[Group]:
    return sorted(groups, key=_work, reverse=True)


def _work(group: Group) -> tuple[int, int]:
    """Pictures and characters of a batch, whose examples are padded to the longest."""
    lengths = [length_of(example) for example in group]
    return sum(pictures for pictures, _ in lengths), len(group) * max(text for _, text in lengths)
