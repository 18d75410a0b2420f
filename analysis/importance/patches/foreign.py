"""The null of patching: what another pair's head outputs do in the place of the partner's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from torch import Tensor

from analysis.importance.patches.pairs import Direction, Pairs, is_pair, pair_up
from analysis.importance.replacements import matched_positions
from probes.head_outputs import head_outputs
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.replay import RecordedForward
    from probes.subject import Subject


class Strangers:
    """Gives each pair another one of the data, of the same length where there is one.

    Which one depends on the data and the seed, not on how the data were cut into batches.

    Args:
        batches: all batches of the data; those of their examples that are pairs are kept.
    """

    def __init__(self, batches: Iterable[Batch], seed: int = 0) -> None:
        found = [
            (length, _number(example.id, seed), example.id, example)
            for batch in batches
            for example, length in zip(batch.examples, _lengths(batch), strict=True)
            if is_pair(example)
        ]
        found.sort(key=lambda entry: entry[:3])
        groups: dict[int, list[Example]] = {}
        for length, _, _, example in found:
            groups.setdefault(length, []).append(example)
        self._next: dict[str, Example] = {}
        for group in groups.values():
            self._next |= _round(group)
        lonely = {group[0].id for group in groups.values() if len(group) == 1}
        everyone = _round([example for *_, example in found])
        self._next |= {name: everyone[name] for name in lonely}

    def __bool__(self) -> bool:
        return len(self._next) > 1

    def of(self, examples: Sequence[Example]) -> list[Example]:
        """The stranger of each example."""
        return [self._next[example.id] for example in examples]


def strange_outputs(
    subject: Subject,
    base: RecordedForward,
    pairs: Pairs,
    strangers: Strangers,
    direction: Direction,
) -> dict[Site, Tensor]:
    """``[batch query head value_width]`` by site: head outputs of other pairs, for the base run.

    Noising takes the strangers' corrupted halves, denoising their clean ones, as it does of the
    pair itself. A position takes the stranger's position of the same role and of the same number
    within that role.
    """
    theirs = pair_up(subject, strangers.of(pairs.clean.examples))
    half = theirs.corrupted if direction == "noising" else theirs.clean
    other, found = head_outputs(subject, half), {}
    for site, z in base.z.items():
        if site in other.z:
            index = matched_positions(base.batch, half, site, z, other.z[site])
            found[site] = other.z[site].flatten(0, 1)[index.to(z.device)]
    return found


def _round(examples: Sequence[Example]) -> dict[str, Example]:
    """Everyone's next, the first after the last."""
    names = [example.id for example in examples]
    return dict(zip(names, [*examples[1:], *examples[:1]], strict=True))


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each example; 0 where inputs have no mask."""
    mask = batch.tensors.get("attention_mask")
    return [0] * batch.size if mask is None else mask.sum(-1).long().tolist()


def _number(example_id: str, seed: int) -> int:
    text = f"{seed}\0{example_id}\0stranger".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
