"""Batches of examples of which some may be bad: those are set aside with their reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

Skip = Callable[["Example", str], None]


def length_of(example: Example) -> tuple[int, int]:
    """How many pictures an example has, and characters of text."""
    text = len(example.prompt or "") + len(example.answer or "")
    return len(example.pictures), text


def prepared_batches(subject: Subject, group: Sequence[Example], skip: Skip) -> Iterator[Batch]:
    """The examples of a group as one batch, or as several where they do not go together.

    An example that cannot be prepared (it does not decode, is too long) is handed to ``skip`` with
    the reason, and the rest goes on.
    """
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
        yield from prepared_batches(subject, good, skip)


def _reason(error: BaseException, example: Example) -> str:
    """Why an example cannot be prepared, without its name, which whoever reads it has."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"Example {example.id!r}").lstrip(": ")
