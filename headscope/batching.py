"""From examples to batches: alike lengths together, bad examples set aside with their reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from probes.prepared_batches import Skip, length_of, prepared_batches

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

__all__ = ["BATCH_SIZE", "Skip", "batches", "length_of", "longest_first", "shard_size"]

BATCH_SIZE = 8
_SHARD_EXAMPLES = 32


def shard_size(batch_size: int) -> int:
    """Examples in a shard: whole batches, about 32 examples.

    A shard is what is lost when a run is interrupted.
    """
    return max(1, _SHARD_EXAMPLES // batch_size) * batch_size


def batches(
    subject: Subject, examples: Sequence[Example], batch_size: int, skip: Skip
) -> Iterator[Batch]:
    """Batches of at most ``batch_size`` examples, those of similar length together.

    The order depends on the examples alone: most images first, then longest first, so that what
    does not fit into memory shows at once. An example that cannot be prepared (it does not
    decode, is too long) is handed to ``skip`` with the reason, and the rest of its batch goes on.
    """
    ordered = longest_first(examples)
    for start in range(0, len(ordered), batch_size):
        yield from prepared_batches(subject, ordered[start : start + batch_size], skip)


def longest_first(examples: Sequence[Example]) -> list[Example]:
    """The order of `batches`: most images, then longest text first."""
    return sorted(examples, key=length_of, reverse=True)
