"""What is known of a model that is to be restarted, each fact found out on the model itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.inputs import Batch
from probes.layout import Layout
from probes.operations import tensors_in
from probes.replaying.outline import Outline
from probes.replaying.returned import differing
from probes.sample_inputs import sample_tensors
from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from probes.replaying.recorded import RecordedForward
    from probes.subject import Subject

Verdict = Literal[True] | str
"""True, or a sentence that says why not."""

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Of the largest value. Outputs are bitwise equal almost everywhere; kernels may differ a bit."""
_HALF_TOLERANCE = 2e-2


class SpoiledError(RuntimeError):
    """A recorded tensor was changed in place, so the record is of no use any more."""


@dataclass(eq=False)
class Knowledge:
    """What was found out about one model, with one layout.

    Attributes:
        frail: paths of modules whose output the model changes after they returned it.
        restarts: whether starting again at a site was proven to give what a whole forward gives.
        keeps_positions: whether ``logits_to_keep`` gives the logits of the positions asked for.
        reads_more_than_first: outputs were seen to read other positions than the first.
        folds: whether copies can be folded into the batch.
    """

    layout: Layout
    implementation: str
    outline: Outline
    frail: set[str] = field(default_factory=set)
    restarts: dict[Site, Verdict] = field(default_factory=dict)
    keeps_positions: bool | None = None
    reads_more_than_first: bool = False
    folds: dict[Any, Verdict] = field(default_factory=dict)


_known: weakref.WeakKeyDictionary[nn.Module, Knowledge] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def knowledge_of(subject: Subject) -> Knowledge:
    """What is known of a subject's model."""
    layout, implementation = subject.layout, subject.attention_implementation
    with _lock:
        known = _known.get(subject.model)
        if known is None or known.layout is not layout or known.implementation != implementation:
            known = Knowledge(layout, implementation, Outline(subject.model, layout))
            _known[subject.model] = known
        return known


def tolerance_of(output: Any) -> float:
    """How far equal outputs may differ, in units of the largest value."""
    floating = [t.dtype for t in tensors_in(output) if t.is_floating_point()]
    return max((TOLERANCE.get(dtype, _HALF_TOLERANCE) for dtype in floating), default=0.0)


def trial_batch(subject: Subject) -> Batch | None:
    """A small input of our own, or None where it cannot be guessed."""
    try:
        tensors = sample_tensors(subject)
    except Exception:  # whatever a processor makes of our sample: the user's batch is used instead
        return None
    return None if tensors is None else subject.on_device(Batch(dict(tensors), TokenMap({}), ()))


def prove_restarts(
    known: Knowledge,
    sites: Iterable[Site],
    recorded: RecordedForward,
    record_trial: Callable[[], RecordedForward | None],
) -> None:
    """Find out at which sites a restart gives what a whole forward gives, head outputs changed.

    Tried on a small input of our own; sites that it does not reach on the recorded batch.
    """
    new = [site for site in sites if site not in known.restarts]
    if not new:
        return
    trial = record_trial()
    for site in new:
        here = trial if trial is not None and site in trial.z else recorded
        try:
            known.restarts[site] = _proof(here, site)
        except SpoiledError:
            if here is recorded:
                raise
            trial = record_trial()  # with copies of what is now known to be changed
            assert trial is not None
            known.restarts[site] = _proof(trial, site)


def _proof(recorded: RecordedForward, site: Site) -> Verdict:
    z = recorded.z[site]
    changes = {site: (range(z.shape[2]), z * -0.5)}
    expected = recorded.run_whole(changes)
    try:
        made = recorded.run_from(changes)
    except SpoiledError:
        raise
    except Exception as error:  # any class of model may fail in its own way
        return f"Started at {site}, the model fails ({type(error).__name__}: {error})."
    problem = differing(made, expected, tolerance_of(expected))
    return f"Started at {site}, the model gives something else ({problem})." if problem else True


def gives_positions(subject: Subject, batch: Batch) -> bool:
    """Whether the model gives the logits of chosen positions, compared once with all logits."""
    if "logits_to_keep" not in subject.arguments.names:
        return False
    small = trial_batch(subject)
    if small is not None:
        try:
            return _gives_positions(subject, small)
        except Exception:  # our sample does not suit the model: it is tried on the user's batch
            pass
    return _gives_positions(subject, batch)


def _gives_positions(subject: Subject, batch: Batch) -> bool:
    full = _logits(subject.forward(batch))
    if full is None or full.shape[1] < 4:
        return False
    chosen = torch.tensor([1, full.shape[1] - 2], device=full.device)
    try:
        some = _logits(subject.forward(batch, logits_to_keep=chosen))
    except (TypeError, RuntimeError, IndexError, ValueError):
        return False  # takes a number only
    if some is None or some.shape[:2] != (full.shape[0], 2):
        return False
    return not differing(some, full[:, chosen], tolerance_of(full))


def _logits(output: Any) -> Tensor | None:
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) and logits.ndim == 3 else None
