"""From examples to batches: alike lengths together, bad examples set aside with their reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

Skip = Callable[["Example", str], None]

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
        yield from _prepared(subject, ordered[start : start + batch_size], skip)


def longest_first(examples: Sequence[Example]) -> list[Example]:
    """The order of `batches`: most images, then longest text first."""
    return sorted(examples, key=length_of, reverse=True)


def _prepared(subject: Subject, group: Sequence[Example], skip: Skip) -> Iterator[Batch]:
    try:
        batch = subject.prepare(examples=group)
    except (ValueError, OSError) as error:
        if len(group) == 1:
            skip(group[0], _reason(error, group[0]))
            return
    else:
        yield batch
        return
    good = []
    for example in group:
        try:
            subject.prepare(examples=[example])
        except (ValueError, OSError) as error:
            skip(example, _reason(error, example))
        else:
            good.append(example)
    if len(good) == len(group):
        # Each can be prepared, together they cannot (images of several sizes): one by one.
        for example in good:
            yield subject.prepare(examples=[example])
    elif good:
        yield from _prepared(subject, good, skip)


def length_of(example: Example) -> tuple[int, int]:
    """How many pictures an example has, and characters of text."""
    text = len(example.prompt or "") + len(example.answer or "")
    return len(example.pictures), text


def _reason(error: BaseException, example: Example) -> str:
    """Why an example cannot be prepared, without its name, which whoever reads it has."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"Example {example.id!r}").lstrip(": ")
