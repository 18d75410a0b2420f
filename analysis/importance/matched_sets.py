"""Random sets of heads, with as many in each layer as a given set has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import comb, prod

import numpy as np

from probes.heads import Head, Site

HeadSet = tuple[Head, ...]


def matched_sets(
    heads: Iterable[Head], counts: Mapping[Site, int], draws: int, seed: int = 0
) -> tuple[list[HeadSet], int]:
    """Up to ``draws`` distinct sets that match ``heads`` layer by layer, and how many there are.

    Sets may share heads with the given one but are not it. Where there are no more than ``draws``,
    all of them are given; where the given set takes whole layers, there is none.

    Args:
        counts: heads of each layer.

    >>> sets, there_are = matched_sets([Head("language", 0, 1)], {Site("language", 0): 3}, 20)
    >>> [[str(head) for head in one] for one in sets], there_are
    ([['language.L0H0'], ['language.L0H2']], 2)
    """
    given = tuple(sorted(set(heads)))
    by_site: dict[Site, list[int]] = {}
    for head in given:
        by_site.setdefault(head.site, []).append(head.head)
    there_are = how_many(given, counts)
    if there_are <= draws:
        choices = (combinations(range(counts[site]), len(mine)) for site, mine in by_site.items())
        every = [_named(by_site, chosen) for chosen in product(*choices)]
        return [one for one in every if one != given], there_are
    generator = np.random.default_rng([seed, len(given), there_are % 2**63])
    found: dict[HeadSet, None] = {}
    while len(found) < draws:
        chosen = [
            sorted(generator.permutation(counts[site])[: len(mine)].tolist())
            for site, mine in by_site.items()
        ]
        one = _named(by_site, chosen)
        if one != given:
            found[one] = None
    return list(found), there_are


def how_many(heads: Iterable[Head], counts: Mapping[Site, int]) -> int:
    """How many other sets match the given one layer by layer.

    >>> how_many([Head("language", 0, 1), Head("language", 0, 2)], {Site("language", 0): 4})
    5
    """
    taken = Counter(head.site for head in set(heads))
    return prod(comb(counts[site], mine) for site, mine in taken.items()) - 1


def _named(sites: Iterable[Site], chosen: Sequence[Iterable[int]]) -> HeadSet:
    return tuple(
        sorted(
            Head(site.tower, site.layer, head)
            for site, mine in zip(sites, chosen, strict=True)
            for head in mine
        )
    )
