"""Two methods at once: each finds what it would find alone, and both act, whatever their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import seeing_batches as seen
import torch
from torch import Tensor

from analysis.vision.methods.agla import agla, ensembled
from analysis.vision.methods.vhr import vhr
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.edits.parse import parse_edit
from probes.subject import Subject
from tests.probes.test_tap import hooks

SINKS = "tau=1.4,dimensions=3+5+7+11+20"
OTHERS = [
    "gift:depth=0.4+1,source=0.1",
    "gift:source=0.9",
    f"var:{SINKS},rho=0.05,mass=0.15",
    "paint",
    "modulation",
    "prune_tokens",
    f"sink_removal:{SINKS}",
]
EVERYWHERE = ((0.0, 1.0),)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass(frozen=True)
class Ready:
    """A method that was prepared by hand."""

    prepared: Prepared
    label: str = "ready"

    def on(self, subject: Subject) -> Prepared:
        return self.prepared


def by_hand(subject: Subject, alpha: float) -> Any:
    """What VHR does, with the heads that it chooses where it is alone."""
    prepared = vhr(alpha, depth=EVERYWHERE).on(subject)
    with edit(subject, Ready(prepared)):
        subject.forward(seen.three(subject))
    chosen: Any = prepared.edits[0]
    heads = chosen.chosen_heads
    assert len(heads) == 3 and any(not torch.equal(h[0], h[1]) for h in heads.values())

    def louder(z: Tensor, place: EditPlace) -> Tensor:
        new = z.clone()
        for row, head in heads[place.site].nonzero().tolist():
            new[row, :, head] = z[row, :, head] * alpha
        return new

    return edits.edit_z("language.*", louder)


@pytest.mark.parametrize("text", OTHERS)
def test_vhr_and_another_method_are_both_by_hand(subject: Subject, text: str) -> None:
    batch, alpha = seen.three(subject), 1.5
    written = [seen.written_together(subject, batch)[1]]
    for pair in (
        (parse_edit(text), by_hand(subject, alpha)),
        (parse_edit(text), vhr(alpha, depth=EVERYWHERE)),
        (vhr(alpha, depth=EVERYWHERE), parse_edit(text)),
    ):
        with edit(subject, *pair) as reports:
            written.append(seen.written_together(subject, batch)[1])
        assert all(report.touched for report in reports)
    plain, expected, one, other = written
    assert torch.equal(one, other)
    # A look of GIFT's own at the prompt hears what is done by hand, but no other method.
    if "source" not in text:
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one, plain, atol=1e-3)


def test_a_second_look_hears_the_model_without_the_other_method(subject: Subject) -> None:
    """GIFT whose saliency layer needs a forward of its own finds the map that it finds alone."""
    batch, found = seen.three(subject), []
    for others in ((), (vhr(3.0, depth=EVERYWHERE),)):
        prepared = parse_edit("gift:source=0.9").on(subject)  # type: ignore[union-attr]
        with edit(subject, *others, Ready(prepared)):
            subject.forward(batch)
        found.append(prepared.edits[0]._looked[0].gain)
    assert torch.equal(found[0], found[1]) and bool(found[0].any())


def test_a_look_ahead_is_neither_heard_nor_counted(subject: Subject) -> None:
    batch = seen.three(subject)
    scaling = edits.scale("language.L1H2", 3.0)
    with edit(subject, scaling) as (alone,):
        subject.forward(batch)
    with edit(subject, edits.matched_random(scaling, 1)) as (random_alone,):
        subject.forward(batch)
    methods = [vhr(), parse_edit("gift:source=0.9"), parse_edit("agla")]
    with edit(subject, scaling, edits.matched_random(scaling, 1), *methods) as reports:
        subject.forward(batch)
        reports[-1].fired = 1  # it acts where text is written
    assert (reports[0].fired, reports[0].touched) == (alone.fired, alone.touched)
    assert (reports[1].fired, reports[1].touched) == (random_alone.fired, random_alone.touched)


def test_vhr_is_chosen_anew_when_the_same_batch_runs_under_another_edit(subject: Subject) -> None:
    batch = seen.three(subject)
    for branches in ("both", "image"):
        made = vhr(depth=EVERYWHERE, branches=branches)
        with edit(subject, edits.zero("language.L0"), made):
            expected = subject.forward(batch).logits
        with edit(subject, made):
            subject.forward(batch)
            with edit(subject, edits.zero("language.L0")):
                found = subject.forward(batch).logits
        assert torch.equal(found, expected)


def test_act_keeps_the_two_branches_of_agla_apart(subject: Subject) -> None:
    """Each branch, made to write the same words alone, has the logits that it has beside."""
    batch, calibrated = seen.three(subject), parse_edit("act:theta=0.05,depth=0+1")
    prepared = agla(keep=0.5).on(subject)
    made, added = prepared.logits, []
    assert made is not None

    def keeping(batch: Any, report: Any) -> Any:
        ensemble = made(batch, report)

        def process(ids: Tensor, scores: Tensor) -> Tensor:
            added.append(ensemble(ids, scores))
            return added[-1]

        return process

    prepared.logits = keeping
    with edit(subject, calibrated, Ready(prepared)):
        ids = subject.generate(batch, 4, eos_token_id=None).ids
    state: Any = prepared.before

    def alone(run: Any) -> list[Tensor]:
        kept: list[Tensor] = []

        def force(_: Tensor, scores: Tensor) -> Tensor:
            kept.append(scores.clone())
            return torch.full_like(scores, -1e9).scatter(1, ids[:, len(kept) - 1, None], 0.0)

        with edit(subject, calibrated) as (report,):
            subject.generate(run, 4, logits_processor=[force], eos_token_id=None)
        assert report.touched > 0
        return kept

    whole, part = alone(batch), alone(state.__self__.masked)
    assert len(added) == 4
    for found, one, other in zip(added, whole, part, strict=True):
        torch.testing.assert_close(found, ensembled(one, other, 2.0, 0.5))


@pytest.mark.parametrize(
    "pair", [("agla", "vhr"), ("gift", "agla"), ("var", "paint"), ("vhr", "vhr:alpha=3")]
)
def test_no_trace_of_two(subject: Subject, pair: tuple[str, str]) -> None:
    batch = seen.three(subject)
    plain, count = subject.forward(batch).logits, hooks(subject.model)
    calls = []

    def interrupt(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores

    with pytest.raises(KeyboardInterrupt), edit(subject, *map(parse_edit, pair)):
        subject.generate(batch, 3, logits_processor=[interrupt], eos_token_id=None)
    assert hooks(subject.model) == count
    assert torch.equal(subject.forward(batch).logits, plain)
    capture(subject, batch, z=["language.L0"])
