"""Attribution patching against exact ablation where it must be exact, and by its laws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from torch import Tensor, nn

from analysis.importance import log_probability
from analysis.importance.estimates import curvature
from analysis.importance.estimates.attribution_patching import AttributionPatching, atp
from analysis.importance.leave_one_out import importance
from analysis.importance.readings import Reading
from analysis.importance.study import StudyOptions
from analysis.scores import BatchScores
from probes.gradients import z_gradients
from probes.heads import Site
from probes.inputs import Example
from probes.subject import Subject
from tests.analysis.importance.estimates.test_gradient import (
    TEXTS,
    batches_of,
    log_likelihood,
    of,
    scored,
    text_subject,
)


class Linear(nn.Module):
    """Attention whose pattern is fixed, on a linear way to the logits."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(5, 6)
        self.mix = nn.Linear(6, 6)
        self.leave = nn.Linear(6, 7)
        self.score = nn.Parameter(torch.randn(1, heads, 11, 6 // heads))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        value = hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        fixed = self.score.expand(x.shape[0], -1, -1, -1)
        z = nn.functional.scaled_dot_product_attention(fixed, fixed, value)
        return self.leave(self.mix(z.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_linear_model_is_estimated_exactly(ablation: str) -> None:
    torch.manual_seed(4)
    subject = Subject(Linear().eval(), name="linear")
    batches = [subject.prepare(x=torch.randn(3, 11, 5))]
    options = StudyOptions(effects=("logit",), ablation=ablation, label="predicted")
    exact = of(
        scored(importance(options), subject, batches), "importance_logit", f"ablation={ablation}"
    )
    guess = of(scored(atp(options), subject, batches), "atp_logit", f"ablation={ablation}")
    assert len(exact) == 2
    for head, values in exact.items():
        assert torch.allclose(guess[head], values, atol=1e-5)
        assert float(values.abs().amax()) > 1e-2


def test_the_sign_and_size_are_those_of_a_small_ablation() -> None:
    """Replacing z by nearly itself, the estimate is the exact effect."""
    subject = text_subject()
    (batch,) = batches_of(subject, 4)
    study = atp(StudyOptions())

    class Nearly:
        name, draws, joint, pass_name = "nearly", 1, True, ""

        def begin(self, *_: Any) -> None: ...
        def start(self, *_: Any) -> None: ...
        def on_call(self, *_: Any) -> None: ...
        def touches(self, site: Any) -> bool:
            return True

        def reached(self, batch: Any, site: Any) -> Tensor:
            return torch.ones(batch.size, dtype=torch.bool)

        def values(self, recorded: Any, site: Site, draw: int = 0) -> Tensor:
            return recorded.z[site] * 0.99

    study.replacement = Nearly()  # type: ignore[assignment]
    exact = importance(StudyOptions())
    scored(exact, subject, [batch])
    exact.replacement = Nearly()  # type: ignore[assignment]
    true = of(exact.score(subject, batch), "importance_cross_entropy", "ablation=mean")
    found = of(scored(study, subject, [batch]), "atp_cross_entropy", "ablation=mean")
    for head, values in true.items():
        assert torch.allclose(found[head], values, rtol=5e-2, atol=2e-5)


def all_of(study: Any, subject: Subject, size: int, side: str) -> BatchScores:
    return scored(study, subject, batches_of(subject, size, side))


@pytest.mark.parametrize("ablation", ["mean", "zero", "mean:role"])
def test_batches_and_padding_change_nothing(ablation: str) -> None:
    subject = text_subject()
    options = StudyOptions(ablation=ablation, graddrop=True)
    alone = all_of(atp(options), subject, 1, "left")
    for size, side in ((4, "left"), (3, "right")):
        together = all_of(atp(options), subject, size, side)
        assert together.columns == alone.columns
        assert torch.allclose(together.numerator, alone.numerator, rtol=1e-3, atol=1e-5)
        assert torch.equal(together.denominator, alone.denominator)
    assert {c.measure for c in alone.columns} == {
        "atp_cross_entropy",
        "atp_query_cross_entropy",
        "atp_key_cross_entropy",
        "atp_graddrop_cross_entropy",
    }


class Counter:
    """Forwards of a model, and backward passes anywhere."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards = self.backwards = 0
        self.handle = model.register_forward_pre_hook(self.forward)
        inner = torch.autograd.grad

        def grad(*args: Any, **kwargs: Any) -> Any:
            self.backwards += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, "grad", grad)

    def forward(self, *_: Any) -> None:
        self.forwards += 1


@pytest.mark.parametrize("curved", [True, False])
def test_all_heads_cost_four_passes_and_two_without_curvature(
    monkeypatch: pytest.MonkeyPatch, curved: bool
) -> None:
    subject = text_subject()
    batches = batches_of(subject, 4)
    study = AttributionPatching(StudyOptions(), curved=curved)
    study.begin(subject, lambda: batches)
    counter = Counter(subject.model, monkeypatch)
    scores = study.score(subject, batches[0])
    counter.handle.remove()
    assert (counter.forwards, counter.backwards) == ((2, 2) if curved else (1, 1))
    assert bool(of(scores, "atp_cross_entropy", "ablation=mean,curved")) is curved


def test_graddrop_is_the_mean_size_over_the_other_blocks() -> None:
    subject = text_subject()
    (batch,) = batches_of(subject, 4)
    scores = scored(atp(StudyOptions(ablation="zero", graddrop=True)), subject, [batch])
    found = of(scores, "atp_graddrop_cross_entropy", "ablation=zero")
    alone = subject.prepare(text=[TEXTS[1]], chat_template=False)
    total: dict[tuple[int, int], float] = {}
    for frozen in range(3):
        module = subject.model.get_submodule(f"model.layers.{frozen}")
        handle = module.register_forward_hook(
            lambda _, args, output: args[0] + (output - args[0]).detach()
        )
        ids = alone.tensors["input_ids"][0]
        try:
            gradients = z_gradients(
                subject,
                alone,
                lambda output, ids=ids: (
                    output.logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).sum()[None]
                ),
            )
        finally:
            handle.remove()
        for site, gradient in gradients.gradient.items():
            for head, value in enumerate((gradients.z[site] * gradient).sum((0, 1, 3)).tolist()):
                key = (site.layer, head)
                total[key] = total.get(key, 0.0) + abs(value) / 2
    for (layer, head), expected in total.items():
        assert math.isclose(float(found["language", layer, head][1]), expected, rel_tol=1e-3)


def test_a_written_out_softmax_estimates_z_only() -> None:
    subject = text_subject(attn_implementation="eager")
    scores = all_of(atp(StudyOptions()), subject, 4, "left")
    assert {c.measure for c in scores.columns} == {"atp_cross_entropy"}
    assert "writes out its own softmax" in scores.reasons["language", "atp_key_cross_entropy"]
    same = all_of(atp(StudyOptions()), text_subject(), 4, "left")
    found, expected = (of(s, "atp_cross_entropy", "ablation=mean") for s in (scores, same))
    for head, values in expected.items():
        assert torch.allclose(found[head], values, atol=1e-6)


def test_query_estimate_of_a_last_layer_with_a_linear_end_is_exact() -> None:
    """A linear way from z to the logits: with the fix, replaced queries are exact."""

    class Asking(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            hidden = self.enter(x)
            query, key, value = (
                part.unflatten(-1, (2, 3)).transpose(1, 2)
                for part in (9 * self.query(hidden), self.key(hidden), hidden)
            )
            head = torch.tensor([1.0, factor])[:, None, None]
            z = nn.functional.scaled_dot_product_attention(query * head, key, value)
            return self.leave(self.mix(z.transpose(1, 2).flatten(2)).mean(1))

    torch.manual_seed(4)
    model = Asking().eval()
    subject = Subject(model, name="asking")
    batch = subject.prepare(x=torch.randn(3, 11, 5))
    options = StudyOptions(effects=("logit",), ablation="zero", label="predicted")
    scores = scored(atp(options), subject, [batch])
    found = of(scores, "atp_query_logit", "ablation=zero")
    plain = of(scores, "atp_query_logit", "ablation=zero,plain")
    x = batch.tensors["x"]
    with torch.no_grad():
        logits, without = model(x), model(x, factor=0.0)
    best = logits.argmax(-1, keepdim=True)
    expected = (logits - without).gather(1, best)[:, 0].double()
    (key,) = [name for name in found if name[2] == 1]
    assert torch.allclose(found[key], expected, atol=1e-4)
    assert not torch.allclose(plain[key], expected, rtol=0.2, atol=1e-3)


def sketched(logits: Tensor, seed: int) -> Tensor:
    """Float64 ``[read choice]``: the gradient of one sketch, all reads of one example."""
    where = torch.zeros(logits.shape[0], dtype=torch.long)
    reading = Reading("class", 1, where, where, where, where, where, {})
    at = logits.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(curvature.curvature_sketch(reading, at, ["x"], seed).sum(), at)
    return slope.double()


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
def test_sketches_have_the_covariance_of_the_softmax(
    monkeypatch: pytest.MonkeyPatch, sharpness: float
) -> None:
    """``E[w w^T] = diag p - p p^T`` for each read, and reads do not know of each other."""
    monkeypatch.setattr(log_probability, "_ROW_ELEMENTS", 11)  # one read of two at a time
    draw = torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(2, 11, generator=draw)
    drawn = torch.stack([sketched(logits, seed) for seed in range(4000)])
    found = torch.einsum("nrc,nsd->rscd", drawn, drawn) / len(drawn)
    p = logits.double().softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    scale = float(expected.abs().max())
    for read in range(2):
        assert torch.allclose(found[read, read], expected[read], atol=0.06 * scale)
    assert float(found[0, 1].abs().max()) < 0.06 * scale


def test_two_likely_choices_leave_no_noise() -> None:
    logits = torch.tensor([[0.3, -0.2]])
    p = logits.double().softmax(-1)[0]
    expected = torch.diag(p) - p[:, None] * p
    for seed in range(8):
        (slope,) = sketched(logits, seed)
        assert torch.allclose(slope[:, None] * slope, expected, atol=1e-7)


def test_curvature_is_that_of_the_outputs_softmax() -> None:
    """Many sketches of one example against the explicit quadratic form of a directional slope."""
    subject = text_subject()
    batch = subject.prepare(text=[TEXTS[1]], chat_template=False)
    study = atp(StudyOptions(ablation="zero"))
    study.begin(subject, lambda: [batch])
    reading = study.objectives.of(batch, subject.forward(batch)).reading
    logits = torch.randn(reading.reads, 5, generator=torch.Generator().manual_seed(1))
    way = torch.randn(reading.reads, 5, generator=torch.Generator().manual_seed(2))
    p = logits.softmax(-1)
    expected = float(((p * way**2).sum(-1) - (p * way).sum(-1) ** 2).sum())
    squares = []
    for seed in range(4000):
        at = logits.clone().requires_grad_(True)
        sketch = curvature.curvature_sketch(reading, at, ["0"], seed)
        (slope,) = torch.autograd.grad(sketch.sum(), at)
        squares.append(float((slope * way).sum()) ** 2)
    assert math.isclose(sum(squares) / len(squares), expected, rel_tol=0.1)


def test_the_curved_estimate_is_right_to_second_order() -> None:
    """One head on a linear way to the logits: only the softmax bends."""
    torch.manual_seed(4)
    model = Linear(heads=1).eval()
    model.leave.weight.data.mul_(6)
    subject = Subject(model, name="linear")
    batch = subject.prepare(x=torch.randn(5, 11, 5))
    options = StudyOptions(effects=("cross_entropy",), ablation="zero", label="predicted")
    exact = of(
        scored(importance(options), subject, [batch]), "importance_cross_entropy", "ablation=zero"
    )
    ((head, values),) = exact.items()
    study = atp(options)
    first = of(scored(study, subject, [batch]), "atp_cross_entropy", "ablation=zero")[head]
    curved = torch.zeros_like(first)
    for seed in range(60):
        again = atp(replace(options, seed=seed))
        found = of(scored(again, subject, [batch]), "atp_cross_entropy", "ablation=zero,curved")
        curved += found[head] / 60
    missed = float((first - values).sum())
    assert abs(missed) > 0.1
    assert abs(float((curved - values).sum())) < 0.25 * abs(missed)


def test_bfloat16_ranks_as_float32_does() -> None:
    subject = text_subject()
    exact = all_of(atp(StudyOptions()), subject, 4, "left")
    half = Subject(text_subject().model.to(torch.bfloat16), tiny_models.tokenizer("left"))
    found = all_of(atp(StudyOptions()), half, 4, "left")
    assert found.columns == exact.columns and found.numerator.dtype == torch.float64
    for measure in ("atp_cross_entropy", "atp_query_cross_entropy"):
        one, other = (of(s, measure, "ablation=mean") for s in (exact, found))
        pair = torch.stack([torch.stack([d[h].sum() for h in one]) for d in (one, other)])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.95


def test_resampling_averages_its_draws() -> None:
    subject = text_subject()
    batches = batches_of(subject, 4)
    scores = scored(atp(StudyOptions(ablation="resample", draws=3)), subject, batches)
    variants = {c.variant for c in scores.columns if c.measure == "atp_cross_entropy"}
    assert variants == {"ablation=resample"}
    assert torch.isfinite(scores.numerator).all()
    assert log_likelihood(subject, batches_of(subject, 1)[0]).isfinite()


@pytest.mark.parametrize("ablation", ["uniform", "knock_out:text->image"])
def test_vision_language_and_other_ablations(ablation: str) -> None:
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    pictures = [Image.effect_noise((20, 20), 60 + 40 * i).convert("RGB") for i in range(2)]
    examples = [
        Example(str(i), question="describe the image", image=picture, answer="a cat sat")
        for i, picture in enumerate(pictures)
    ]
    batch = subject.prepare(examples=examples)
    scores = scored(atp(StudyOptions(ablation=ablation)), subject, [batch])
    found = of(scores, "atp_cross_entropy", f"ablation={ablation}")
    assert {tower for tower, _, _ in found} == {"vision", "language"}
    assert float(found["language", 0, 1].abs().amax()) > 0
