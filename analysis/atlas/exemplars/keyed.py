"""Numbers that look random and depend on an example's id and a position alone.

Whatever is drawn by them does not depend on batches or on the order of the data.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_TOP = np.uint64(1)


def example_key(example_id: str, seed: int) -> int:
    """64 bits from the id of an example and a seed."""
    text = f"{seed}\0{example_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8, person=b"exemplars").digest(), "little")


def position_keys(
    examples: NDArray[np.uint64], sequence: NDArray[np.int64], rank: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Int64 from 0 to 2^63 - 1, one per position, even and independent of each other.

    Args:
        examples: `example_key` of the example that each position belongs to.
        sequence: which sequence of its example a position stands in.
        rank: place in the sequence, padding not counted.
    """
    place = (sequence.astype(np.uint64) << np.uint64(32)) + rank.astype(np.uint64)
    return (_mixed(examples ^ _mixed(place)) >> _TOP).astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
