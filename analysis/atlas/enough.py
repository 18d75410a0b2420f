"""Whether there are enough patterns for a map: before the model runs, and once they are drawn."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from analysis.atlas.atlas_map import MapOptions, least_patterns
from analysis.atlas.clusters import TooFewPatterns
from analysis.atlas.gather import Reached, sampled_heads

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.subject import Subject


def needed_patterns(how: MapOptions) -> int:
    """How many patterns a tower must have: for the map, and one for each cluster."""
    return max(least_patterns(how), how.clusters or 0)


def why_too_few(tower: str, count: int, how: MapOptions) -> str:
    """A sentence if a tower has too few patterns for a map, else empty."""
    needed = needed_patterns(how)
    if count >= needed:
        return ""
    what, instead = _what(how)
    return f"{what} at least {needed} patterns, {tower} has {count}. Take more samples{instead}."


def refuse_too_few(subject: Subject, data: Data, samples: int, how: MapOptions) -> None:
    """Nothing, if some tower may have enough patterns for a map; the model is not run.

    No more batches are looked at than it takes to tell.

    Raises:
        TooFewPatterns: no tower can have as many.
        ValueError: no attention that can be captured, or fewer samples than heads.
    """
    heads = sampled_heads(subject, samples)
    heads_of, per_head = Counter(head.tower for head in heads), samples // len(heads)
    needed, reached = needed_patterns(how), Reached(subject)
    best, most = "", 0
    for batch in data():
        reached.add(batch)
        counts = {
            tower: heads_of[tower] * min(per_head, len(examples))
            for tower, examples in reached.examples.items()
        }
        best = max(counts, key=lambda tower: counts[tower])
        most = counts[best]
        if most >= needed:
            return
    if not best:
        return  # Without a single example, scoring says why.
    each, (what, instead) = most // max(heads_of[best], 1), _what(how)
    more = "samples" if each == per_head else "examples"
    raise TooFewPatterns(
        f"{what} at least {needed} patterns, {best} can have {most}: {each} of each of "
        f"{heads_of[best]} heads. Take more {more}{instead}."
    )


def _what(how: MapOptions) -> tuple[str, str]:
    if (how.clusters or 0) > least_patterns(how):
        return f"{how.clusters} clusters need", ", or ask for fewer clusters"
    return "A map needs", ""
