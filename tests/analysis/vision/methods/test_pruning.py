"""Pruned image tokens: against loops, against the model's own attention mask, and in pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
import seeing_batches as seen
import torch
from loop_attention import Row, Rule, looping, written
from torch import Tensor

from analysis.vision.methods.pruning import How, prune_tokens
from analysis.vision.pruning.kept_patches import kept_patches, patch_overlap
from probes.edits.apply import edit
from probes.subject import Subject

METHODS: tuple[How, ...] = ("faster_vlm", "evit", "hiprune", "flowcut", "fastv")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


def _best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda patch: -scores[patch])[:count]


@dataclass
class Pruned(Rule):
    """Half of 16 patches are hidden from a layer on; the scores come from lists of weights."""

    method: str = "faster_vlm"
    image: int = 0
    first: int = 0
    shown: list[int] | None = None
    early: list[list[float]] = field(default_factory=list)

    def cls(self, layer: int) -> dict[int, float]:
        return {p: sum(self.seen[layer, h, 0][1 + p] for h in range(3)) / 3 for p in range(16)}

    def received(self, layer: int) -> dict[int, float]:
        asked = [(h, query) for h in range(3) for query in range(17)]
        return {p: sum(self.seen[layer, h, q][1 + p] for h, q in asked) / 51 for p in range(16)}

    def choose(self) -> list[int]:
        if self.method == "faster_vlm":
            return _best(self.cls(3), 8)
        if self.method == "fastv":
            means = [sum(row[self.image + p] for row in self.early) / 6 for p in range(16)]
            return _best(dict(enumerate(means)), 8)
        if self.method == "evit":  # of 5 layers: 1, 2 and 4; 16 -> 13 -> 11 -> 8
            left = set(range(16))
            for layer, stay in ((1, 13), (2, 11), (4, 8)):
                scores = self.cls(layer)
                left = set(_best({p: scores[p] for p in left}, stay))
            return sorted(left)
        if self.method == "hiprune":  # round(.1 * 8 / 5) = 0 anchors: layer 3 alone
            return _best(self.received(3), 8)
        return self.flowcut()

    def flowcut(self) -> list[int]:
        left, cumulative = list(range(16)), dict.fromkeys(range(16), 0.0)
        for layer in range(3):
            attention, similar = self.cls(layer), dict.fromkeys(range(16), 0.0)
            mean = [[0.0] * 4 for _ in range(16)]
            for head in range(3):
                values = self.values[layer, head]
                powers = [
                    math.exp(sum(a * b for a, b in zip(values[0], value, strict=True)))
                    for value in values
                ]
                for p in range(16):
                    similar[p] += powers[1 + p] / sum(powers) / 3
                    mean[p] = [m + v / 3 for m, v in zip(mean[p], values[1 + p], strict=True)]
            totals = [sum(column[p] for p in left) for column in (attention, similar)]
            for p in left:
                score = attention[p] / totals[0] + similar[p] / totals[1]
                score *= sum(abs(m) for m in mean[p])
                cumulative[p] = (cumulative[p] + score) / 2 if layer else score
            if layer == 1 or len(left) <= 8:
                continue
            shares = [attention[p] / totals[0] for p in left]
            ratio = -sum(s * math.log(s) for s in shares) / math.log(len(left))
            gone = round((len(left) - 8) / math.sqrt(2) * (1 - ratio**2)) if layer == 0 else 99
            left = _best({p: cumulative[p] for p in left}, max(8, len(left) - gone))
        return left

    def weights(self, rows: list[tuple[Row, list[float]]]) -> list[list[float]]:
        found = super().weights(rows)
        row = rows[0][0]
        if row.tower == "language" and row.layer == self.first - 1 and row.last and not self.early:
            self.early = found
        return found

    def scores(self, row: Row, scores: list[float]) -> list[float]:
        if row.tower == "vision" or row.layer < self.first:
            return scores
        if self.shown is None:
            self.shown = self.choose()
        hidden = {self.image + p for p in range(16) if p not in self.shown}
        new = [-math.inf if key in hidden else score for key, score in enumerate(scores)]
        return scores if max(new) == -math.inf else new  # a pruned row that may read nothing


@pytest.mark.parametrize("method", METHODS)
def test_generation_equals_a_loop(subject: Subject, method: How) -> None:
    with edit(subject, prune_tokens(method)) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    _, plain = seen.written_together(subject, seen.three(subject))
    frame = kept_patches(subject, seen.three(subject), [method])
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        rule = Pruned(method=method, image=start, first=int(method == "fastv"))
        expected_ids, expected = written(looping(subject.model, rule), tensors, seen.STEPS)
        assert rule.shown is not None
        mine = frame[frame["example"] == str(row)]
        assert mine[method].to_numpy().nonzero()[0].tolist() == sorted(rule.shown)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
    assert (logits - plain).abs().max() > 1e-3
    assert report.fired > 0 and report.touched > 0


def _masked_from(subject: Subject, batch: Any, hidden: Tensor, first: int) -> Tensor:
    """Logits of the model when its own attention mask forbids keys from a layer on."""
    handles = []
    length = hidden.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & batch.tensors["attention_mask"].bool()[:, None] & ~hidden[:, None]
    # A row that may read nothing reads itself: it is one of those that nobody reads any more.
    allowed |= torch.eye(length, dtype=torch.bool)
    mask = torch.where(allowed[:, None], 0.0, torch.finfo(torch.float32).min)

    def give(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    for layer in subject.model.model.language_model.layers[first:]:  # type: ignore[union-attr]
        handles.append(layer.register_forward_pre_hook(give, with_kwargs=True))
    logits = subject.forward(batch).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize(("method", "first"), [("hiprune", 0), ("hiprune", 2), ("fastv", 1)])
def test_what_is_kept_is_as_under_the_models_own_mask(
    subject: Subject, method: How, first: int
) -> None:
    batch = seen.three(subject)
    frame = kept_patches(subject, batch, [method], keep=0.3)
    image = batch.tokens["language"].has_role("image").reshape(3, -1)
    hidden = image.clone()
    hidden[image] = torch.from_numpy(~frame[method].to_numpy())
    assert hidden.sum(1).tolist() == [11, 11, 11], "round(.3 * 16) = 5 stay"
    expected = _masked_from(subject, batch, hidden, first)
    with edit(subject, prune_tokens(method, 0.3, from_layer=first)):
        found = subject.forward(batch).logits
    there = batch.tensors["attention_mask"].bool() & ~hidden
    assert torch.allclose(found[there], expected[there], atol=2e-5)
    plain = subject.forward(batch).logits
    assert not torch.allclose(found[there], plain[there], atol=1e-3)


def test_keeping_all_touches_nothing(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    with edit(subject, "prune_tokens", keep=1.0) as (report,):
        found = subject.forward(batch).logits
    assert (report.touched, report.fired > 0) == (0, True)
    assert torch.allclose(found, plain, atol=1e-5)


def test_another_batch_is_pruned_anew(subject: Subject) -> None:
    batches = [subject.prepare([text], [picture]) for text, picture in
               zip(seen.TEXTS, seen.pictures(), strict=True)]  # fmt: skip
    apart = []
    for batch in batches:
        with edit(subject, "prune_tokens"):
            apart.append(subject.forward(batch).logits)
    with edit(subject, "prune_tokens"):
        for batch, expected in zip(batches, apart, strict=True):
            assert torch.equal(subject.forward(batch).logits, expected)


def test_pictures_and_overlap(subject: Subject) -> None:
    batch = seen.three(subject)
    frame = kept_patches(subject, batch, keep=0.25)
    assert list(frame.columns[:9]) == [
        "example", "image", "tile", "row", "column", "left", "top", "right", "bottom",
    ]  # fmt: skip
    assert list(frame.columns[9:]) == list(METHODS)
    assert len(frame) == 48
    assert (frame.groupby("example")[list(METHODS)].sum() == 4).all(axis=None)
    assert frame.loc[5, ["row", "column", "left", "top"]].tolist() == [1, 1, 5.0, 5.0]
    pairs = patch_overlap(frame)
    assert len(pairs) == 10 and set(pairs["images"]) == {3}
    first = pairs.iloc[0]
    by_hand = []
    for example in "012":
        mine = frame[frame["example"] == example]
        sets = [set(mine.index[mine[name]]) for name in ("faster_vlm", "evit")]
        by_hand.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert first["iou"] == pytest.approx(sum(by_hand) / 3)
    assert first["chance"] == pytest.approx(1 / 7), "1 of 16 is kept by both, 7 by either"


def test_overlap_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "example": ["a"] * 4 + ["b"] * 4,
            "image": 0,
            "one": [True, True, False, False, True, False, False, False],
            "other": [True, True, True, False, False, True, False, False],
        }
    )
    (line,) = patch_overlap(frame).to_dict("records")
    assert line["iou"] == pytest.approx((2 / 3 + 0) / 2)
    assert line["chance"] == pytest.approx((1.5 / 3.5 + 0.25 / 1.75) / 2)
    assert line["images"] == 2


def test_settings_that_make_no_sense(subject: Subject) -> None:
    with pytest.raises(ValueError, match="`keep` of prune_tokens must lie between 0 and 1, got 0"):
        prune_tokens(keep=0.0)
    with pytest.raises(ValueError, match="must be one of faster_vlm, evit"):
        prune_tokens("dyvte")  # type: ignore[arg-type]
    with (
        pytest.raises(ValueError, match="`from_layer` of prune_tokens must be between 0 and 2"),
        edit(subject, "prune_tokens", from_layer=3),
    ):
        pass
    with (
        pytest.raises(ValueError, match="`from_layer` must be at least 1, got 0"),
        edit(subject, "prune_tokens", method="fastv", from_layer=0),
    ):
        pass
    with pytest.raises(ValueError, match="kept_patches must be given methods and a share"):
        kept_patches(subject, seen.three(subject), [])
