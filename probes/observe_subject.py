"""Observe the layout of a subject: on a small sample of our own, or on the user's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probes.finite import refuse_nonfinite
from probes.inputs import Batch
from probes.layout import Layout
from probes.load_error import LoadError
from probes.observe import observe
from probes.sample_inputs import sample_tensors
from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from probes.subject import Subject

_WRONG_SAMPLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What models raise for an input that does not suit them."""


def observe_on_sample(subject: Subject) -> tuple[Layout, set[str]]:
    """The layout of a subject, seen in one forward on a sample made for its kind, and its inputs.

    Raises:
        LoadError: no sample can be made, the model does not run on it, or its weights are NaN.
    """
    advice = (
        "Its towers are read off one forward: call `subject.prepare(...)` first with its own "
        f"tensors by name ({', '.join(subject.arguments.names)})."
    )
    if subject.processor_failed:
        advice = f"{subject.processor_problem}. {advice}"
    try:
        tensors = sample_tensors(subject)
        if tensors is not None:
            return observe_on(subject, tensors, 1), set(tensors)
    except LoadError:
        raise
    except _WRONG_SAMPLE as error:
        raise LoadError(
            f"{subject.name!r} did not run on a small sample ({type(error).__name__}: {error}). "
            f"{advice}"
        ) from error
    raise LoadError(f"What {subject.name!r} reads cannot be guessed. {advice}")


def observe_on(subject: Subject, tensors: Mapping[str, Any], rows: int) -> Layout:
    """The layout of a subject, seen in one forward on tensors of ``rows`` examples."""
    batch = Batch(dict(tensors), TokenMap({}), ())
    layout = observe(
        subject.model, lambda: subject.forward(batch), examples=rows, inputs=list(tensors)
    )
    # Weights that are NaN make every layer after them fail its check.
    if any(" nan " in refusal.reason for refusal in layout.refusals):
        refuse_nonfinite(subject.model, subject.name, layout.towers)
    return layout
