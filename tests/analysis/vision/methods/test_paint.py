"""PAINT against four loops, by hand, and where it does not apply."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import seeing_batches as seen
import torch
from loop_attention import Row, Rule, looping, written
from torch import Tensor

from analysis.vision.methods.paint import paint, streams
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.subject import Subject
from probes.written_text import continued


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass
class Painted(Rule):
    """PAINT on one prompt whose image begins at some position."""

    image: int = 0
    layers: frozenset[int] = frozenset()
    alpha: float = 0.7
    beta: float = 0.3
    chosen: tuple[set[int], set[int]] | None = field(default=None)

    def choose(self) -> tuple[set[int], set[int]]:
        first, late = (
            [sum(self.seen[layer, head, 0][1 + patch] for head in range(3)) for patch in range(16)]
            for layer in (0, 3)
        )
        local = set(sorted(range(16), key=lambda patch: -first[patch])[:4])
        ordered = sorted(late)
        # Quartiles of 16 numbers lie a quarter of the way from one to the next.
        q1 = ordered[3] + 0.75 * (ordered[4] - ordered[3])
        q3 = ordered[11] + 0.25 * (ordered[12] - ordered[11])
        summary = {patch for patch in range(16) if late[patch] > q3 + 1.5 * (q3 - q1)}
        return local - summary, summary

    def scores(self, row: Row, scores: list[float]) -> list[float]:
        if row.tower == "vision" or not row.last or row.layer not in self.layers:
            return scores
        if self.chosen is None:
            self.chosen = self.choose()
        new = list(scores)
        for share, group in zip((self.alpha, self.beta), self.chosen, strict=True):
            for patch in group:
                new[self.image + patch] += share * abs(scores[self.image + patch])
        return new


def test_generation_equals_a_loop_over_heads_queries_and_keys(subject: Subject) -> None:
    """The middle of the first of three layers lies behind the second of 32."""
    with edit(subject, "paint") as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    plain_ids, plain = seen.written_together(subject, seen.three(subject))
    chosen = []
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        rule = Painted(image=start, layers=frozenset({0, 1, 2}))
        expected_ids, expected = written(looping(subject.model, rule), tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
        chosen.append(rule.chosen)
    assert (logits - plain).abs().max() > 1e-2
    assert all(local for local, _ in chosen) and any(summary for _, summary in chosen), chosen
    # Each of 3 layers x 6 heads changes one row per example in the prompt and at each step.
    assert report.touched == 3 * 6 * 3 * seen.STEPS
    assert plain_ids.shape == ids.shape


def test_depth_leaves_the_first_two_of_32_layers(subject: Subject) -> None:
    deep = Subject(seen.seeing(num_hidden_layers=8).model, subject.processor)
    with edit(deep, paint(depth=(0.25, 1.0))) as (report,):
        deep.forward(seen.three(deep))
    assert {head.layer for head in report.heads} == set(range(2, 8))


def test_an_answer_that_is_read_is_treated_as_one_that_is_written(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, "paint"):
        ids, logits = seen.written_together(subject, batch, 4, suppress_tokens=[4])
        read = subject.forward(continued(subject, batch, ids)).logits
    start = batch.tensors["input_ids"].shape[1]
    words = torch.arange(31) != 4  # no image token may be written where none can be read
    read = read[:, start - 1 : -1].transpose(0, 1)
    assert torch.allclose(read[..., words], logits[..., words], atol=2e-5)


def test_only_the_last_row_of_a_prompt_changes_and_rows_sum_to_one(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    with edit(subject, paint(depth=(0.0, 0.3))):
        found = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    assert isinstance(plain, Tensor) and isinstance(found, Tensor)
    assert torch.equal(found[:, :, :-1], plain[:, :, :-1])
    assert not torch.equal(found[:, :, -1], plain[:, :, -1])
    assert torch.allclose(found[:, :, -1].sum(-1), torch.ones(3, 6), atol=1e-6)


def test_streams_by_hand() -> None:
    """Two images of 8; Q1 = 2.75 and Q3 = 6.25 of 1 to 8, so an outlier lies above 11.5."""
    first = torch.tensor([9.0, 1, 8, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 1, 2])
    late = torch.tensor([30.0, 2, 3, 4, 5, 6, 7, 1, 1, 2, 3, 4, 5, 6, 7, 11.4])
    owner = torch.tensor([0] * 8 + [1] * 8)
    found = streams(first, late, owner, 0.25)
    assert found.summary.nonzero()[:, 0].tolist() == [0]
    assert found.local.nonzero()[:, 0].tolist() == [2, 14, 15], "0 is a summary token"
    late[15] = 11.6  # Q3 of 1, 2, ..., 7, 11.6 is still 6.25
    again = streams(first, late, owner, 0.25)
    assert again.summary.nonzero()[:, 0].tolist() == [0, 15]
    assert again.local.nonzero()[:, 0].tolist() == [2, 14]


def test_the_share_is_rounded_down_and_unplaced_positions_are_never_chosen() -> None:
    first = torch.cat([torch.tensor([torch.nan]), torch.arange(100.0)])
    found = streams(first, torch.ones(101), torch.zeros(101, dtype=torch.long), 0.29)
    assert found.local.nonzero()[:, 0].tolist() == list(range(72, 101))
    assert not found.summary.any()


def test_the_control_and_the_plain_model_afterwards(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    with edit(subject, edits.matched_random(paint(), 3)) as (report,):
        control = subject.forward(batch).logits
    assert report.touched > 0 and not torch.equal(control[:, -1], plain[:, -1])
    assert torch.equal(subject.forward(batch).logits, plain)
