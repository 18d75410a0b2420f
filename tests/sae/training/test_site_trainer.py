from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae.coders.coder import Losses, Moment
from sae.coders.registry import make_coder
from sae.coders.start import geometric_median
from sae.coders.topk import TopK
from sae.training.config import TrainConfig
from sae.training.site_trainer import SiteTrainer

WIDTH = 7


def _config(**settings: object) -> TrainConfig:
    usual = {"latents": 23, "k": 3, "tokens": 190, "batch_size": 19, "buffer_rows": 19}
    rate = {"learning_rate": 0.01, "warm_up": 0.0, "decay": 0.0, "fast": False}
    return TrainConfig(**{**usual, **rate, **settings})  # type: ignore[arg-type]


def _batches(count: int, rows: int = 19, size: float = 4.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [size * torch.randn(rows, WIDTH, generator=generator) + 1 for _ in range(count)]


def _trained(config: TrainConfig, batches: list[Tensor], mean_norm: float = 1.0) -> SiteTrainer:
    trainer = SiteTrainer("language.L2", WIDTH, config)
    trainer.begin(batches[0], mean_norm)
    for x in batches:
        trainer.step(x)
    return trainer


def test_steps_are_those_of_adam_written_out():
    config = _config(gradient_clip=0.5, warm_up=0.4, decay=0.3, seed=5, dead_features="none")
    batches, mean_norm = _batches(10), 11.0
    scale = mean_norm / math.sqrt(WIDTH)
    coder = make_coder(config, WIDTH)
    with torch.no_grad():
        coder.decoder_bias.copy_(geometric_median(batches[0] / scale))
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in coder.parameters()}
    rates = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    clipped = 0
    for t, (x, rate) in enumerate(zip(batches, rates, strict=True), 1):
        total = coder.losses(x / scale, Moment(step=t - 1, fast=False)).total
        gradients = dict(
            zip(moments, torch.autograd.grad(total, list(coder.parameters())), strict=True)
        )
        with torch.no_grad():
            rows = coder.decoder
            along = (gradients[rows] * rows).sum(1, keepdim=True)
            gradients[rows] = gradients[rows] - along * rows
            norm = math.sqrt(sum(float(g.pow(2).sum()) for g in gradients.values()))
            clipped += norm > 0.5
            for p, g in gradients.items():
                g = g * min(1.0, 0.5 / norm)
                first, second = moments[p]
                first.mul_(0.9).add_(0.1 * g)
                second.mul_(0.999).add_(0.001 * g * g)
                step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
                p.sub_(0.01 * rate * step)
            rows.div_(rows.norm(dim=1, keepdim=True))
    assert clipped > 3
    trainer = _trained(config, batches, mean_norm)
    assert trainer.scale == pytest.approx(scale)
    for name, value in trainer.coder.named_parameters():
        torch.testing.assert_close(value, dict(coder.named_parameters())[name])


def test_the_finished_coder_reads_and_writes_what_the_model_computes():
    batches = _batches(10)
    trainer = _trained(_config(), batches, mean_norm=11.0)
    x = batches[0]
    scaled = trainer.coder.eval()(x / trainer.scale) * trainer.scale
    coder = trainer.finished({"site": "language.L2"})
    torch.testing.assert_close(coder(x), scaled)
    assert not coder.training and not any(p.requires_grad for p in coder.parameters())
    assert all(p.grad is None for p in coder.parameters())
    assert coder.about == {"site": "language.L2"}


def test_without_normalisation_rows_are_taken_as_they_are():
    trainer = _trained(_config(normalise="none"), _batches(2), mean_norm=11.0)
    assert trainer.scale == 1.0


def test_records_come_at_the_first_every_nth_and_the_last_step():
    trainer = SiteTrainer("a", WIDTH, _config(log_every=4), clock=lambda: 2.5)
    batches = _batches(10)
    trainer.begin(batches[0], 3.0)
    found = [trainer.step(x) for x in batches]
    steps = [record.step for record in found if record is not None]
    assert steps == [1, 4, 8, 10] and trainer.done
    last = found[-1]
    assert last is not None
    assert (last.site, last.steps, last.tokens, last.seconds) == ("a", 10, 190, 2.5)
    assert last.lr == 0.01


def test_a_record_says_what_the_batch_was_explained():
    trainer = SiteTrainer("a", WIDTH, _config(normalise="none", auxiliary=0))
    (x,) = _batches(1)
    trainer.begin(x, 1.0)
    coder = trainer.coder
    with torch.no_grad():
        read, strengths = coder(x), coder.encode(x)
    error = float((x - read).pow(2).sum())
    record = trainer.step(x)
    assert record is not None
    spread = sum(float((row - x.mean(0)).pow(2).sum()) for row in x)
    assert record.explained_variance == pytest.approx(1 - error / spread, rel=1e-5)
    assert record.loss == pytest.approx(error / 19, rel=1e-5)
    assert record.parts["reconstruction"] == pytest.approx(error / 19, rel=1e-5)
    assert record.l0 == pytest.approx(float((strengths > 0).sum()) / 19)


def test_rows_that_do_not_vary_have_no_explained_variance():
    trainer = SiteTrainer("a", WIDTH, _config(normalise="none"))
    x = torch.ones(19, WIDTH)
    trainer.begin(x, 1.0)
    record = trainer.step(x)
    assert record is not None and record.explained_variance is None


class _Spy(TopK):
    """Notes what losses are asked for."""

    def losses(self, x: Tensor, moment: Moment) -> Losses:
        seen.append((moment, self.pre_activations(x).dtype))
        return super().losses(x, moment)


seen: list[tuple[Moment, torch.dtype]] = []


@pytest.fixture
def spied(monkeypatch):
    from sae.coders import registry

    seen.clear()
    monkeypatch.setitem(registry.CODERS, "topk", _Spy)
    return seen


def test_the_coder_is_told_where_the_training_is(spied):
    config = _config(sparsity_warm_up=0.4, dead_after=40, latents=200)
    _trained(config, _batches(10))
    moments = [moment for moment, _ in spied]
    assert [m.step for m in moments] == list(range(10))
    assert [m.progress for m in moments] == pytest.approx([i / 10 for i in range(10)])
    assert [m.warmth for m in moments][:6] == [0, 0.25, 0.5, 0.75, 1, 1]
    # 40 rows are over after the third batch of 19.
    assert [m.dead is None for m in moments] == [True] * 3 + [False] * 7
    dead = moments[3].dead
    assert dead is not None and 0 < int(dead.sum()) < 200
    assert not moments[0].fast


def test_bfloat16_is_what_products_are_done_in_and_parameters_stay_float32(spied):
    trainer = _trained(_config(dtype="bfloat16"), _batches(3))
    assert {dtype for _, dtype in spied} == {torch.bfloat16}
    assert {p.dtype for p in trainer.coder.parameters()} == {torch.float32}
    exact = _trained(_config(), _batches(3))
    assert {dtype for _, dtype in spied[3:]} == {torch.float32}
    torch.testing.assert_close(trainer.coder.decoder, exact.coder.decoder, atol=0.03, rtol=0)


def test_half_precision_rows_are_trained_on_in_float32(spied):
    _trained(_config(), [x.bfloat16() for x in _batches(2)])
    assert {dtype for _, dtype in spied} == {torch.float32}


def test_latents_that_do_not_fire_begin_again_where_rows_are_explained_badly():
    config = _config(dead_features="resample", dead_after=19, decay=0.5, tokens=380)
    batches = _batches(20)
    trainer = SiteTrainer("a", WIDTH, config)
    trainer.begin(batches[0], 1.0)
    assert trainer.schedule.resampling_steps == (2, 4, 6, 8)
    with torch.no_grad():
        trainer.coder.encoder_bias[:5] = -1e6
    for x in batches[:2]:
        trainer.step(x)
    assert trainer.firing.dead is not None and bool(trainer.firing.dead[:5].all())
    before = trainer.coder.decoder[:5].detach().clone()
    trainer.step(batches[2])
    assert float(trainer.coder.encoder_bias.detach().amin()) > -1
    assert not torch.allclose(trainer.coder.decoder[:5], before, atol=0.1)
    assert int(trainer.firing.rows_since[:5].amax()) <= 19


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jump_relu", "gated", "standard"])
def test_a_trainer_that_was_restored_goes_on_bit_for_bit(kind):
    config = _config(coder=kind, dead_after=30, warm_up=0.2, decay=0.3)
    batches = _batches(10)
    whole = _trained(config, batches, mean_norm=9.0)
    begun = SiteTrainer("a", WIDTH, config)
    begun.begin(batches[0], 9.0)
    for x in batches[:6]:
        begun.step(x)
    part = begun.part()
    tensors = {name: value.clone() for name, value in part.tensors.items()}
    assert all(name.startswith("a/") for name in tensors)
    later = SiteTrainer("a", WIDTH, config)
    later.restore(tensors, part.facts)
    for x in batches[6:]:
        later.step(x)
    for (name, mine), theirs in zip(
        later.coder.state_dict().items(), whole.coder.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert later.firing.rows_since.tolist() == whole.firing.rows_since.tolist()
    assert later.done


def test_a_loss_that_is_not_finite_is_named_with_site_and_step():
    trainer = SiteTrainer("vision.L1", WIDTH, _config())
    batches = _batches(4)
    trainer.begin(batches[0], 1.0)
    trainer.step(batches[0])
    trainer.step(batches[1])
    with pytest.raises(
        ValueError, match=r"loss at vision\.L1 must be finite, it was not at step 3"
    ):
        trainer.step(batches[2] * 1e30)


def test_rows_that_are_not_finite_are_named_with_site_and_step():
    trainer = SiteTrainer("vision.L1", WIDTH, _config())
    (x,) = _batches(1)
    trainer.begin(x, 1.0)
    bad = x.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"Head outputs of vision\.L1 .* at step 1"):
        trainer.step(bad)


def test_a_coder_that_is_not_finite_is_not_handed_on():
    trainer = _trained(_config(), _batches(2))
    with torch.no_grad():
        trainer.coder.decoder[1, 2] = float("inf")
    with pytest.raises(ValueError, match=r"`coder/decoder` is not after step 2"):
        trainer.part()


def test_rows_of_zeros_are_refused():
    trainer = SiteTrainer("vision.L1", WIDTH, _config())
    with pytest.raises(ValueError, match=r"Rows of vision\.L1 must not all be zero"):
        trainer.begin(torch.zeros(19, WIDTH), 0.0)


def test_rows_that_are_not_finite_are_refused_before_the_first_step():
    trainer = SiteTrainer("vision.L1", WIDTH, _config())
    with pytest.raises(ValueError, match=r"Head outputs of vision\.L1 .* before step 1"):
        trainer.begin(torch.full((19, WIDTH), torch.nan), math.nan)


def test_settings_that_do_not_fit_the_width_name_the_site():
    with pytest.raises(ValueError, match=r"At vision\.L1: `k` must be between 1 and the width.* 7"):
        SiteTrainer("vision.L1", WIDTH, _config(k=8))
