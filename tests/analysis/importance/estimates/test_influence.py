"""Influence of single weights against deleting each, and its spread over distances."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from synthetic_calls import random_call, text_tokens, whole_call
from torch import Tensor

from analysis.importance.estimates.attention_gradients import pattern_gradient
from analysis.importance.estimates.entry_removal import removal_effects
from analysis.importance.estimates.influence import influence
from analysis.importance.study import StudyOptions, available_studies
from analysis.scores import BatchScores
from analysis.tally import Tally
from probes.attention_call import AttentionCall
from probes.inputs import Example
from probes.subject import Subject
from tests.analysis.importance.estimates.test_gradient import (
    TEXTS,
    batches_of,
    of,
    scored,
    text_subject,
)
from tests.analysis.importance.estimates.test_relevancy import matrices

IDS = [[9, 4, 7, 4, 5], [9, 3, 2, 1, 6, 8, 4]]


def effects_of(call: AttentionCall, gradient: Tensor, rows: int) -> Tensor:
    """``[batch head query key]`` from tiles."""
    full = torch.zeros(call.batch, call.heads, call.queries, call.keys)
    for tile in call.tiles(rows=rows):
        found = removal_effects(tile, pattern_gradient(tile, gradient))
        full[tile.batch, :, tile.rows, : tile.keys] = found
    return full


def by_deletion(call: AttentionCall, gradient: Tensor) -> Tensor:
    """The same by taking each key of each row away and making the softmax anew, in float64."""
    assert call.query is not None and call.key is not None
    group = call.heads // call.kv_heads
    query = call.query.double()
    key, value = (t.double().repeat_interleave(group, 1) for t in (call.key, call.value))
    scores = query @ key.mT * call.scale
    allowed = call.allowed(slice(None), slice(0, call.queries), call.keys)
    scores = scores.masked_fill(~allowed, float("-inf"))
    intact = (scores.softmax(-1).nan_to_num(0.0) @ value * gradient).sum(-1)
    found = torch.zeros_like(scores)
    for place in range(call.keys):
        without = scores.clone()
        without[..., place] = float("-inf")
        z = without.softmax(-1).nan_to_num(0.0) @ value
        found[..., place] = (z * gradient).sum(-1) - intact
    return found.masked_fill(~allowed, 0.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 8.0])
@pytest.mark.parametrize("rows", [2, 64])
def test_each_pair_is_what_deleting_it_does(
    side: str, causal: bool, sharpness: float, rows: int
) -> None:
    tokens = text_tokens(IDS, side=side)
    call = random_call(tokens, heads=6, kv_heads=2, causal=causal, sharpness=sharpness)
    gradient = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(3))
    expected = by_deletion(call, gradient.double())
    found = effects_of(call, gradient, rows).double()
    keep = _real(side)[:, None, :, None].expand_as(found)
    assert torch.allclose(found[keep], expected[keep], rtol=1e-3, atol=1e-4)
    assert float(expected[keep].abs().amax()) > 0.5


def _real(side: str) -> Tensor:
    width = max(map(len, IDS))
    rows = []
    for ids in IDS:
        spare = [False] * (width - len(ids))
        rows.append(spare + [True] * len(ids) if side == "left" else [True] * len(ids) + spare)
    return torch.tensor(rows)


def test_three_tokens_by_hand() -> None:
    pattern = torch.tensor([[[[1.0, 0, 0], [0.4, 0.6, 0], [0.5, 0.2, 0.3]]]])
    call = whole_call(pattern, text_tokens([[9, 4, 7]], bos=False))
    call.value = torch.eye(3)[None, None]
    gradient = torch.tensor([[[[2.0, 0, 0], [1, -2, 0], [3, 1, -1]]]])
    found = effects_of(call, gradient, 64)[0, 0]
    # A first row has nothing else to read: what it gave is lost. In the second, either weight
    # going leaves the other: -2 - (-0.8) and 1 - (-0.8). In the third, the mean is 1.4.
    assert found[0].tolist() == pytest.approx([-2.0, 0, 0])
    assert found[1].tolist() == pytest.approx([-1.2, 1.8, 0], abs=1e-6)
    expected = [-0.5 * 1.6 / 0.5, 0.2 * 0.4 / 0.8, 0.3 * 2.4 / 0.7]
    assert found[2].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def eager() -> Any:
    return tiny_models.sharp(tiny_models.llama(attn_implementation="eager", num_hidden_layers=2))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_spans_and_totals_of_a_model_equal_whole_matrices(eager: Any, size: int, side: str) -> None:
    """Patterns and their gradients by autograd of an eager model; pairs by plain loops."""
    subject = text_subject(side, num_hidden_layers=2)
    subject.model.load_state_dict(eager.state_dict())
    scores = scored(influence(StudyOptions()), subject, batches_of(subject, size, side))
    totals = of(scores, "influence_cross_entropy")
    spans = of(scores, "influence_span_cross_entropy", "tokens")
    place = {(c.measure, c.layer, c.head): i for i, c in enumerate(scores.columns)}
    for number, text in enumerate(TEXTS):
        ids = subject.prepare(text=[text], chat_template=False).tensors["input_ids"]
        patterns, gradients = matrices(eager, ids)
        n = ids.shape[1]
        for layer, head in ((0, 0), (0, 5), (1, 3)):
            a, g = patterns[layer][head], gradients[layer][head]
            by_distance, even = [0.0] * n, [0.0] * n
            for q in range(n):
                mean = float((a[q] * g[q]).sum())
                for k in range(q + 1):
                    p = float(a[q, k])
                    e = -p * (float(g[q, k]) - mean) / (1 - p) if q else -p * float(g[q, k])
                    by_distance[q - k] += abs(e)
                    even[q - k] += 1 / (q + 1)
            key = ("language", layer, head)
            assert float(totals[key][number]) == pytest.approx(sum(by_distance), rel=2e-3)
            assert float(spans[key][number]) == span_of(by_distance)
            index = place["influence_span_cross_entropy", layer, head]
            assert float(scores.denominator[number, index]) == 1
            assert float(scores.null_numerator[number, index]) == span_of(even)
    curve = scores.curves["language", 0, "influence_cross_entropy"]
    assert curve.axis == "distance_bin"
    assert torch.allclose(curve.value.sum(-1), torch.ones(6, dtype=torch.float64))
    assert float(curve.null.sum()) == pytest.approx(1)
    summed = sum(totals["language", 0, 2].tolist())
    assert float(curve.denominator[2, 0]) == pytest.approx(summed, rel=1e-5)


def span_of(weights: list[float]) -> int:
    return next(d for d in range(len(weights)) if sum(weights[: d + 1]) >= 0.95 * sum(weights))


def test_a_vision_tower_has_spans_in_patches_and_none_where_nothing_is_read() -> None:
    model = tiny_models.vit()
    subject = Subject(model, processor=tiny_models.image_processor(20))
    examples = [
        Example(str(i), images=(Image.effect_noise((32, 32), 20 + 40 * i).convert("RGB"),),
                label=str(i))
        for i in range(3)
    ]  # fmt: skip
    batches = [subject.prepare(examples=examples)]
    scores = scored(influence(StudyOptions(label="predicted")), subject, batches)
    spans = {
        (c.layer, c.head): scores.numerator[:, i] / scores.denominator[:, i]
        for i, c in enumerate(scores.columns)
        if (c.measure, c.variant, c.unit) == ("influence_span_cross_entropy", "patches", "patches")
    }
    layers = subject.towers["vision"].layers
    # The class is read at CLS, so patches of the last layer have no influence on it, and no span.
    assert {layer for layer, _ in spans} == set(range(layers - 1))
    for found in spans.values():
        assert bool(((found >= 0) & (found < 5)).all())
    assert ("vision", 0, "influence_cross_entropy") not in scores.curves


def test_what_goes_to_a_learned_sink_is_brought_up_with_the_rest() -> None:
    weights, sink = torch.tensor([1.0, 0.0, -1.0]).exp(), torch.tensor(3.0).exp()
    gradient = torch.tensor([0.7, -0.4, 1.3])
    pattern = (weights / (weights.sum() + sink))[None, None, None]
    found = removal_effects(
        SimpleNamespace(pattern=pattern, scores=None),  # pyright: ignore[reportArgumentType]
        gradient[None, None, None],
    )
    whole = float((pattern.flatten() * gradient).sum())
    for key in range(3):
        left = weights.clone()
        left[key] = 0
        without = float((left / (left.sum() + sink) * gradient).sum())
        assert float(found.flatten()[key]) == pytest.approx(without - whole, abs=1e-6)


def test_it_is_a_study_and_survives_a_tally() -> None:
    assert available_studies()["influence"] is influence
    subject = text_subject()
    scores = scored(influence(StudyOptions()), subject, batches_of(subject, 4))
    tally = Tally()
    tally.add(BatchScores.from_tensors(*scores.to_tensors()))
    heads = tally.heads()
    assert heads.unit("influence_span_cross_entropy", "tokens") == "tokens"
    assert set(tally.profiles()["measure"]) == {"influence_cross_entropy"}
    assert (
        heads.lines("influence_span_cross_entropy", variant="tokens")["value"].between(0, 12).all()
    )


def test_effects_without_a_gradient_are_reported() -> None:
    subject = text_subject()
    study = influence(StudyOptions(effects=("cross_entropy", "flip")))
    scores = scored(study, subject, batches_of(subject, 4))
    for measure in ("influence_flip", "influence_span_flip"):
        assert "has no gradient" in scores.reasons["language", measure]


def test_no_state_is_left_behind() -> None:
    subject = text_subject()
    batch = batches_of(subject, 4)[0]
    study = influence(StudyOptions())
    study.begin(subject, lambda: [batch])
    study.score(subject, batch)
    assert all(p.grad is None for p in subject.model.parameters())
