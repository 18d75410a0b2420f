"""Which patterns are drawn: pairs of an example and a head, known before the model runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

from probes.heads import Head, Site

if TYPE_CHECKING:
    import pandas as pd

    Examples = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Sampling:
    """Pairs of an example and a head.

    Attributes:
        frame: a line per pair: ``tower layer head example``; the index numbers them from 0.
        seed: of the draw; which tile or window of an example is drawn depends on it, too.
    """

    frame: pd.DataFrame
    seed: int

    def __len__(self) -> int:
        return len(self.frame)

    def of_site(self, site: Site) -> Mapping[str, list[tuple[int, int]]]:
        """Example id -> head and number of each pair there."""
        return self._by_site.get(site, {})

    @cached_property
    def _by_site(self) -> dict[Site, dict[str, list[tuple[int, int]]]]:
        found: dict[Site, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        frame = self.frame
        lines = zip(frame["tower"], frame["layer"], frame["head"], frame["example"], strict=True)
        for number, (tower, layer, head, example) in enumerate(lines):
            found[Site(tower, int(layer))][example].append((int(head), number))
        return {site: dict(examples) for site, examples in found.items()}


def draw_samples(
    examples: Examples, heads: Sequence[Head], per_head: int, seed: int = 0
) -> Sampling:
    """The same number of examples for every head, every example as often as any other.

    The examples of a tower are put in an order that a keyed hash of their ids gives. The first
    head takes the first ``per_head`` of them, the next head those that follow, round and round.
    So each head gets exactly ``per_head`` (all, where there are fewer), and two examples of a tower
    differ by at most one in how often they are drawn. The order of the examples and the size of
    batches change nothing.

    Args:
        examples: ids; or by tower, where not every example reaches every tower (an example
            without an image does not reach a vision tower).
        heads: those to draw, of one or several towers.
        per_head: patterns of each head, at least 1.

    Raises:
        ValueError: no heads, no examples, an id or a head given twice, ``per_head`` below 1.
    """
    import pandas as pd

    if per_head < 1:
        raise ValueError(f"`per_head` must be at least 1, got {per_head}. Draw more samples.")
    if not heads or len(set(heads)) != len(heads):
        raise ValueError("`heads` must be at least one head, each once. Name them once each.")
    towers: dict[str, list[Head]] = defaultdict(list)
    for head in sorted(heads):
        towers[head.tower].append(head)
    lines = []
    for tower in dict.fromkeys(head.tower for head in heads):
        ids = examples.get(tower, ()) if isinstance(examples, Mapping) else examples
        order = _shuffled(ids, seed)
        count = min(per_head, len(order))
        for place, head in enumerate(towers[tower]):
            chosen = [order[(place * count + turn) % len(order)] for turn in range(count)]
            lines += [(tower, head.layer, head.head, example) for example in chosen]
    if not lines:
        raise ValueError("There must be at least one example to draw patterns of, got none.")
    return Sampling(pd.DataFrame(lines, columns=["tower", "layer", "head", "example"]), seed)


def rank_of(seed: int, *names: str | int) -> int:
    """A number that a seed gives to names, evenly spread and the same everywhere."""
    text = "\0".join(map(str, (seed, *names))).encode()
    return int.from_bytes(blake2b(text, digest_size=16, person=b"atlas").digest(), "little")


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    names = [str(name) for name in ids]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Each example must have an id of its own, got {twice!r} twice.")
    return sorted(names, key=lambda name: rank_of(seed, name))
