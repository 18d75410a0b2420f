"""In which order a pass goes through the data, and random generators named by what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch

_POOL_BATCHES = 64
"""Batches whose examples are sorted by length together; more: less padding, less chance."""


def keyed_generator(*key: object) -> torch.Generator:
    """A generator that depends on the key alone, such as ``(seed, epoch, block, site)``.

    >>> keyed_generator(0, "a").initial_seed() == keyed_generator(0, "a").initial_seed()
    True
    >>> keyed_generator(0, "a").initial_seed() == keyed_generator(0, "b").initial_seed()
    False
    """
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    # Torch takes 64 bits; the sign bit is left free.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def shuffled(count: int, seed: int | None, epoch: int) -> list[int]:
    """A permutation of ``range(count)`` for an epoch; in order where the seed is None."""
    if seed is None:
        return list(range(count))
    return torch.randperm(count, generator=keyed_generator(seed, epoch, "order")).tolist()


def groups_alike(
    lengths: Sequence[Any], size: int, seed: int | None, epoch: int
) -> list[list[int]]:
    """Indices in groups of at most ``size``, those of similar length together, in random order.

    Examples are shuffled, sorted by length within pools of 64 groups, and the groups are shuffled
    again: a group changes from epoch to epoch, and is padded little. Without a seed: in order.

    >>> groups_alike([3, 1, 2], 2, None, 0)
    [[0, 1], [2]]
    """
    order = shuffled(len(lengths), seed, epoch)
    if seed is None:
        return [order[start : start + size] for start in range(0, len(order), size)]
    groups = []
    for start in range(0, len(order), size * _POOL_BATCHES):
        pool = sorted(order[start : start + size * _POOL_BATCHES], key=lambda i: lengths[i])
        groups += [pool[first : first + size] for first in range(0, len(pool), size)]
    mixed = torch.randperm(len(groups), generator=keyed_generator(seed, epoch, "groups"))
    return [groups[index] for index in mixed.tolist()]
