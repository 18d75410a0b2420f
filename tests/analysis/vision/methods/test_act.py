"""ACT against loops over whole patterns, by hand, on planted sinks, and where it does not apply."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import seeing_batches as seen
import tiny_models as tiny
import torch
from loop_attention import written
from torch import Tensor, nn
from transformers import AttentionInterface

from analysis.vision.methods.act import act
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.loading import load
from probes.subject import Subject
from tests.probes.test_tap import IDS, LEFT

SETTINGS: dict[str, Any] = {"theta": 0.14, "beta": 0.3}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass
class Calibrated:
    """ACT on one prompt; totals and readers of the keys of each layer and head."""

    theta: float
    beta: float
    alpha: float | None = None
    fewest: int = 1
    faithful: bool = False
    totals: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    readers: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    changed: int = 0

    def rows(self, layer: int, head: int, rows: list[list[float]]) -> list[list[float]]:
        """New rows of a head, each as long as there are keys that it may read."""
        where, keys = (layer, head), len(rows[-1])
        first = len(rows) == keys
        if first or self.faithful:
            self.totals[where], self.readers[where] = [], []
        totals, readers = self.totals[where], self.readers[where]
        totals += [0.0] * (keys - len(totals))
        readers += [0] * (keys - len(readers))
        for row in rows:
            for j, weight in enumerate(row):
                totals[j] += weight
                readers[j] += 1
        theta = self.theta if self.alpha is None else self.alpha / keys
        least = 1 if self.faithful and not first else self.fewest
        sinks = [j for j in range(keys) if totals[j] / readers[j] > theta and readers[j] >= least][
            1:
        ]
        return [self.row(row, sinks) for row in rows]

    def row(self, row: list[float], sinks: list[int]) -> list[float]:
        others = [j for j in range(len(row)) if j not in sinks]
        rest = sum(row[j] for j in others)
        budget = sum((1 - self.beta) * row[j] for j in sinks if j < len(row))
        if not budget or not rest:
            return row
        self.changed += 1
        new = [self.beta * weight for weight in row]
        for j in others:
            new[j] = row[j] + budget * row[j] / rest
        assert abs(sum(new) - 1) < 1e-9
        return new


def looping(model: Any, rule: Calibrated) -> Any:
    AttentionInterface.register("whole_loops", _attend)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation({"text_config": "whole_loops"})
    for layer, block in enumerate(twin.model.language_model.layers):
        block.self_attn.loop_place = (layer, rule)
    return twin


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **settings: Any
) -> tuple[Tensor, None]:
    layer, rule = module.loop_place  # type: ignore[misc]
    assert mask is None and query.shape[0] == 1
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    group = heads // key.shape[1]
    out = torch.zeros(1, queries, heads, value.shape[3], dtype=torch.float64)
    for h in range(heads):
        rows = []
        for i in range(queries):
            powers = [
                math.exp(settings["scaling"] * float(query[0, h, i] @ key[0, h // group, j]))
                for j in range(keys - queries + i + 1)
            ]
            rows.append([power / sum(powers) for power in powers])
        for i, row in enumerate(rule.rows(layer, h, rows)):
            for j, weight in enumerate(row):
                out[0, i, h] += weight * value[0, h // group, j].double()
    return out.to(query.dtype), None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 2.2},
        {"fewest_readers": 5},
        {"faithful_decode": True, "theta": 0.06},
    ],
    ids=lambda changes: "-".join(changes) or "theta",
)
def test_generation_equals_loops(subject: Subject, changes: dict[str, Any]) -> None:
    settings = {**SETTINGS, **changes}
    with edit(subject, act(**settings, depth=(0.0, 1.0))) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    _, plain = seen.written_together(subject, seen.three(subject))
    changed = 0
    for row, tensors in enumerate(seen.alone(subject)):
        rule = Calibrated(
            settings["theta"], settings["beta"], settings.get("alpha"),
            settings.get("fewest_readers", 1), settings.get("faithful_decode", False),
        )  # fmt: skip
        expected_ids, expected = written(looping(subject.model, rule), tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
        changed += rule.changed
    assert (logits - plain).abs().max() > 1e-2
    assert report.touched == changed > 50


def test_rows_sum_to_one_and_the_size_of_tiles_changes_nothing(subject: Subject) -> None:
    seen.assert_tiles_change_nothing(subject, act(**SETTINGS), [1])


def test_only_named_heads_are_calibrated_and_the_first_sink_is_spared(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    with edit(subject, act(theta=0.05, heads=("language.L0H1", "language.L0H4"))) as (report,):
        found = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    assert isinstance(plain, Tensor) and isinstance(found, Tensor)
    assert [str(head) for head in report.heads] == ["language.L0H1", "language.L0H4"]
    assert [int((found[:, h] != plain[:, h]).any(-1).sum()) > 0 for h in range(6)] == [
        False, True, False, False, True, False,
    ]  # fmt: skip
    real = ~batch.tokens["language"].has_role("pad").view(3, -1)
    for row in range(3):
        keys = real[row].nonzero()[:, 0]
        for head in (1, 4):
            received = plain[row, head][keys][:, keys].sum(0) / torch.arange(len(keys), 0, -1)
            sinks = (received > 0.05).nonzero()[:, 0].tolist()
            last_old, last_new = (p[row, head, -1][keys] for p in (plain, found))
            assert all(float(last_new[j]) < float(last_old[j]) for j in sinks[1:])
            assert float(last_new[sinks[0]]) >= float(last_old[sinks[0]])


def test_a_language_model_is_calibrated_too() -> None:
    subject = Subject(tiny.sharp(tiny.llama()), tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    plain = subject.forward(batch).logits
    with edit(subject, "act", theta=0.2) as (report,):
        found = subject.forward(batch).logits
        subject.generate(batch, 3)
    assert report.touched > 0 and not torch.allclose(found, plain, atol=1e-3)
    assert torch.equal(subject.forward(batch).logits, plain)


def planted() -> tuple[Subject, Any]:
    from probes.readers import read_examples

    subject = load("shapes-llava-sinks")
    examples = list(read_examples("scenes", subject.kind, 5))
    return subject, subject.prepare(examples=examples, answers=False)


STRONG = (2, 4, 5)
PLANTED: dict[str, Any] = {
    "theta": 0.08, "fewest_readers": 8, "heads": tuple(f"language.L2H{head}" for head in STRONG)
}  # fmt: skip


def test_without_a_cache_all_rows_are_judged_anew() -> None:
    """Both ways agree where the sinks stay the same while tokens are written, as here."""
    subject, batch = planted()
    with edit(subject, act(**PLANTED)) as (report,):
        ids, logits = seen.written_together(subject, batch, 4)
        again, slow = seen.written_together(subject, batch, 4, use_cache=False)
    _, plain = seen.written_together(subject, batch, 4)
    assert report.touched > 0 and (logits - plain).abs().max() > 1e-2
    assert torch.equal(ids, again)
    assert torch.allclose(logits, slow, atol=1e-4)


def test_planted_visual_sinks_are_found_and_moved() -> None:
    """Above the threshold of large models' first tokens (0.3) there is nothing but BOS, which is
    spared; at 0.1 the two planted patches give half of their weight away in the planted heads.
    """
    subject, batch = planted()
    plain = capture(subject, batch, patterns="language.L2").pattern("language.L2")
    with edit(subject, act(**PLANTED)) as (report,):
        found = capture(subject, batch, patterns="language.L2").pattern("language.L2")
    assert isinstance(plain, Tensor) and isinstance(found, Tensor)
    assert report.touched > 0
    tokens = batch.tokens["language"]
    image = tokens.has_role("image").view(5, -1)
    patches = [int(row.nonzero()[0, 0]) for row in image]
    for row, start in enumerate(patches):
        for head in STRONG:
            before, after = plain[row, head, -1], found[row, head, -1]
            lost = (after < 0.41 * before).nonzero()[:, 0]
            assert [int(j) - start for j in lost] == [5, 30]
            assert float(after.sum()) == pytest.approx(1, abs=1e-5)
    for name in ("shapes-llava-sinks", "shapes-llava"):
        other = load(name)
        with edit(other, act(theta=0.3, fewest_readers=12)) as (report,):
            other.forward(other.prepare(examples=list(batch.examples), answers=False))
        assert report.touched == 0


def test_it_has_a_control_and_sentences(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, edits.matched_random(act(**SETTINGS), seed=2)) as (report,):
        subject.generate(batch, 2)
    assert report.touched > 0
    with (
        pytest.raises(ValueError, match="must read or write text, it has only vision"),
        edit(Subject(tiny.vit(), tiny.image_processor(20)), "act"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="Heads must be of language, where text is read"),
        edit(subject, act(heads="vision.L0H1")),
    ):
        pass
    with pytest.raises(ValueError, match="`beta` of act must lie between 0 and 1, got 2"):
        act(beta=2)
    said = "Run a prepared batch with `subject.forward` or `subject.generate` .without beams."
    with pytest.raises(ValueError, match=said), edit(subject, act()):
        subject.generate(batch, 2, num_beams=2)
    said = "must know what language.L0 reads, but its 25 keys are not the prompt and what was"
    with pytest.raises(ValueError, match=said), edit(subject, act(depth=(0.0, 1.0))):
        subject.generate(batch, 2, cache_implementation="static")
