"""What ablations and patches changed: rows of head outputs, counted head by head, mergeable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[str, int, str, str]
"""Tower, layer, measure, variant."""

EQUAL = "What was put in equals what was there."


@dataclass(frozen=True)
class Touched:
    """What a measure changed in one layer.

    A row is what one head gives out at one query position of one example; padding is left out.
    Where several draws stand in for a head, each counts.

    Attributes:
        examples: in which there was something to replace.
        ablations: times that something was taken away (or patched): an example, a head (or the
            whole layer), a draw.
        rows: head -> (rows that were replaced, those of them that got other values by more than
            rounding). Where a measure of a head replaces several heads, the rows of all of them.
    """

    examples: int
    ablations: int
    rows: Mapping[int, tuple[int, int]]

    def __add__(self, other: Touched) -> Touched:
        rows = dict(self.rows)
        for head, (replaced, changed) in other.rows.items():
            before = rows.get(head, (0, 0))
            rows[head] = (before[0] + replaced, before[1] + changed)
        return Touched(self.examples + other.examples, self.ablations + other.ablations, rows)

    @property
    def unchanged(self) -> list[int]:
        """Heads of which no row got another value."""
        return [head for head, (_, changed) in self.rows.items() if not changed]


def merged(parts: Sequence[Mapping[Place, Touched]]) -> dict[Place, Touched]:
    """The counts of all parts, whose examples are different ones."""
    total: dict[Place, Touched] = {}
    for part in parts:
        for place, touched in part.items():
            total[place] = total[place] + touched if place in total else touched
    return total


def to_json(touched: Mapping[Place, Touched]) -> list[list[Any]]:
    """As lists, for a shard's file."""
    return [
        [*place, one.examples, one.ablations, [[head, *rows] for head, rows in one.rows.items()]]
        for place, one in touched.items()
    ]


def from_json(lines: Sequence[Sequence[Any]]) -> dict[Place, Touched]:
    """The inverse of `to_json`."""
    return {
        (tower, layer, measure, variant): Touched(
            examples, ablations, {head: (replaced, changed) for head, replaced, changed in rows}
        )
        for tower, layer, measure, variant, examples, ablations, rows in lines
    }


def by_tower(touched: Mapping[Place, Touched]) -> list[dict[str, Any]]:
    """One record per tower, measure and variant, for people and manifests.

    Keys: ``tower measure variant heads examples ablations``; ``rows`` and ``changed``, lowest and
    highest over heads; ``unchanged``, heads of which nothing changed, as ``L3H5``; ``reason``, why
    nothing changed at all, else empty.
    """
    layers: dict[tuple[str, str, str], dict[int, Touched]] = {}
    for (tower, layer, measure, variant), one in touched.items():
        layers.setdefault((tower, measure, variant), {})[layer] = one
    records = []
    for (tower, measure, variant), found in layers.items():
        rows = [pair for one in found.values() for pair in one.rows.values()]
        replaced, changed = [pair[0] for pair in rows], [pair[1] for pair in rows]
        records.append(
            {
                "tower": tower,
                "measure": measure,
                "variant": variant,
                "heads": len(rows),
                "examples": max(one.examples for one in found.values()),
                "ablations": sum(one.ablations for one in found.values()),
                "rows": [min(replaced, default=0), max(replaced, default=0)],
                "changed": [min(changed, default=0), max(changed, default=0)],
                "unchanged": [
                    f"L{layer}H{head}" for layer in sorted(found) for head in found[layer].unchanged
                ],
                "reason": "" if any(changed) else EQUAL,
            }
        )
    return records


def nothing_in(tower: str, measure: str, reason: str) -> dict[str, Any]:
    """The record of a measure that had nothing to change in a tower."""
    counts = {"heads": 0, "examples": 0, "ablations": 0, "rows": [0, 0], "changed": [0, 0]}
    named = {"tower": tower, "measure": measure, "variant": ""}
    return named | counts | {"unchanged": [], "reason": reason}
