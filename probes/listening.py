"""Attach listeners and edits to a subject for the length of a ``with`` block, per thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probes.heads import Site
from probes.tap import Attached, CallListener, Tap, TapError

if TYPE_CHECKING:
    from probes.edits.edit import EditReport
    from probes.inputs import Batch
    from probes.subject import Subject

_local = threading.local()


def tap_of(subject: Subject) -> Tap:
    """This thread's tap on the subject's model."""
    taps: dict[int, Tap] = _local.__dict__.setdefault("taps", {})
    tap = taps.get(id(subject.model))
    if tap is None or tap.model is not subject.model:
        tap = taps[id(subject.model)] = Tap(subject.model, subject.layout)
    return tap


@contextmanager
def attach(subject: Subject, attached: Attached) -> Iterator[Attached]:
    """Add listeners or edits for the length of a ``with`` block, in this thread only."""
    tap = tap_of(subject)
    try:
        tap.add(attached)
        yield attached
    finally:
        tap.remove(attached)
        _forget_if_idle(subject, tap)


@contextmanager
def announced(subject: Subject, batch: Batch | None, generated: int = 0) -> Iterator[None]:
    """Tell this thread's tap, if something is attached, which batch the model will run.

    Args:
        generated: how many tokens the model may generate.
    """
    tap = _local.__dict__.get("taps", {}).get(id(subject.model))
    if tap is None or batch is None:
        yield
        return
    if tap.whereabouts.batch is not batch:  # `capture` announces, and so does the forward in it
        _run_before(tap, batch, generated)
    tap.whereabouts.begin(batch, generated)
    try:
        yield
    finally:
        tap.whereabouts.end()


def _run_before(tap: Tap, batch: Batch, generated: int) -> None:
    """Let methods look at a batch before its first forward; only plain edits act meanwhile.

    So what a method finds does not depend on the order in which methods are given, and a method
    that cannot run without an image is not asked to where another one takes it away. What is run
    for it is no forward of the user's: captures and measures do not hear it, reports do not count
    it.
    """
    counts = [(report, report.fired, report.touched) for report in _reports(tap)]
    for attached in tap.acting:
        if attached.before is not None:
            with _only_edits(tap):
                attached.before(batch, generated)
    for report, fired, touched in counts:
        report.fired, report.touched = fired, touched


def _reports(tap: Tap) -> Iterator[EditReport]:
    for attached in tap.acting:
        yield from (report for _, _, report in attached.edits)
        if attached.control is not None:
            yield attached.control.report


@contextmanager
def _only_edits(tap: Tap) -> Iterator[None]:
    """Pause what listens, looks ahead or changes logits, and the methods that do."""
    paused = [attached for attached in tap.acting if not attached.only_edits]
    for attached in paused:
        attached.paused = True
    try:
        yield
    finally:
        for attached in paused:
            attached.paused = False


@contextmanager
def beside(subject: Subject, batch: Batch, generated: int, step: int) -> Iterator[None]:
    """Run one forward of another batch's generation in the middle of the one that is going on.

    Edits act in it. What listens, looks ahead or changes logits is paused, as it belongs to the
    generation that is going on.

    Args:
        step: which forward of that batch's generation it is.
    """
    tap = _local.__dict__.get("taps", {}).get(id(subject.model))
    if tap is None:
        yield
        return
    with _only_edits(tap):
        tap.whereabouts.begin(batch, generated, step)
        try:
            yield
        finally:
            tap.whereabouts.end()


def logits_processors(subject: Subject, batch: Batch) -> list[Any]:
    """What attached methods do to next-token logits while this batch is continued."""
    tap = _local.__dict__.get("taps", {}).get(id(subject.model))
    if tap is None:
        return []
    return [attached.logits(batch) for attached in tap.acting if attached.logits is not None]


def _forget_if_idle(subject: Subject, tap: Tap) -> None:
    if not tap.attached:
        _local.__dict__.get("taps", {}).pop(id(subject.model), None)


@contextmanager
def listen(
    subject: Subject,
    batch: Batch | None,
    listener: CallListener,
    sites: Iterable[Site] | None = None,
) -> Iterator[Attached]:
    """Hand every attention call to ``listener`` while the ``with`` block runs the model.

    Args:
        batch: what will be run, so that calls know their positions.
        sites: only these; all by default.

    Raises:
        TapError: at the end of the block, if not one call was seen.
    """
    chosen = frozenset(s.site for s in subject.layout.sites) if sites is None else frozenset(sites)
    if not chosen:
        raise TapError(no_attention_sentence(subject))
    with attach(subject, Attached(chosen, on_call=listener)) as attached, announced(subject, batch):
        yield attached
    if not attached.heard:
        raise TapError(
            f"The forward pass must reach at least one of {len(chosen)} attention layers of "
            f"{subject.name}, reached none. Run the model inside the `with` block, in this thread."
        )


def no_attention_sentence(subject: Subject) -> str:
    """Why a subject has nothing to capture."""
    refused = "; ".join(f"{r.path}: {r.reason}" for r in subject.layout.refusals[:3])
    return (
        f"{subject.name} has no softmax attention that can be captured"
        + (f" ({refused})" if refused else "")
        + ". Run `headscope inspect` on it to see what it is made of."
    )
