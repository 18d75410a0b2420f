"""Baselines: against scikit-learn, loops, and what each must be able to do by construction."""

from __future__ import annotations

import numpy as np
import pytest
import small_coders
import torch
from sklearn.decomposition import PCA

from sae.activations import TensorActivations
from sae.coders.topk import TopK
from sae.judging.baselines import principal_components, random_dictionary, untrained
from sae.judging.fidelity import judge
from sae.judging.seen_rows import seen_rows

GENERATOR = torch.Generator().manual_seed(3)
ROWS = torch.randn(503, 11, generator=GENERATOR) @ torch.randn(11, 11, generator=GENERATOR) + 4
SEEN = seen_rows(ROWS)["input"]


@pytest.mark.parametrize("chunk_rows", [1, 17, 503])
def test_moments_are_of_all_rows_whatever_the_batches(chunk_rows: int) -> None:
    source = TensorActivations({"a": ROWS, "b": ROWS[:7, :3]}, chunk_rows=chunk_rows)
    found = seen_rows(source, ["a"])
    assert list(found) == ["a"]
    assert found["a"].rows == 503
    assert np.allclose(found["a"].mean, ROWS.double().mean(0), rtol=1e-9)
    expected = np.cov(ROWS.double().numpy().T, bias=True)
    assert np.allclose(found["a"].covariance, expected, rtol=1e-6, atol=1e-7)


def test_a_far_mean_costs_no_digits() -> None:
    far = seen_rows(TensorActivations(ROWS.double() + 1e7, chunk_rows=50))["input"]
    expected = np.cov(ROWS.double().numpy().T, bias=True)
    assert np.allclose(far.covariance, expected, rtol=1e-6, atol=1e-6)


def test_the_sample_is_of_rows_each_once_and_none_preferred() -> None:
    rows = torch.arange(600.0)[:, None]
    drawn = [
        seen_rows(TensorActivations(rows, chunk_rows=70, seed=None), sample=60, seed=seed)["input"]
        for seed in range(20)
    ]
    for one in drawn:
        values = one.sample[:, 0].tolist()
        assert len(values) == len(set(values)) == 60
        assert set(values) <= set(range(600))
    # Means of 1,200 draws of a uniform distribution: the standard error is 5.
    assert abs(float(torch.stack([one.sample for one in drawn]).mean()) - 299.5) < 20
    few = seen_rows(rows[:9], sample=60)["input"].sample
    assert sorted(few[:, 0].tolist()) == list(range(9))
    with pytest.raises(ValueError, match="must be one of input, got 'x'"):
        seen_rows(rows, ["x"])


@pytest.mark.parametrize("count", [1, 4, 10])
def test_components_are_those_of_scikit_learn(count: int) -> None:
    coder = principal_components(SEEN, count + 0.3)
    fitted = PCA(count).fit(ROWS.double().numpy())
    held_out = ROWS.flip(1)[:101]
    expected = fitted.inverse_transform(fitted.transform(held_out.double().numpy()))
    assert np.allclose(coder(held_out), expected, atol=1e-4)
    found = judge(coder, ROWS)
    assert found.l0 == count == coder.latents
    share = float(fitted.explained_variance_ratio_.sum())
    assert found.explained_variance == pytest.approx(share, abs=1e-5)


def test_all_components_reconstruct_everything() -> None:
    for l0 in (11, 23.0):
        coder = principal_components(SEEN, l0)
        assert coder.latents == 11
        assert judge(coder, ROWS).explained_variance == pytest.approx(1, abs=1e-9)
    assert principal_components(SEEN, 0.2).latents == 1


def test_a_random_dictionary_takes_the_best_of_its_directions() -> None:
    coder = random_dictionary(SEEN, 37, 4.6, seed=2)
    assert isinstance(coder, TopK)
    lengths = coder.decoder.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(37), atol=1e-5)
    factor = float(coder.encoder.norm(dim=1).mean())
    assert torch.allclose(coder.encoder, factor * coder.decoder, atol=1e-5)
    for row in ROWS[:13]:
        wanted = row - SEEN.mean.float()
        products = (coder.decoder @ wanted).tolist()
        best = sorted(range(37), key=lambda i: -products[i])[:5]
        made = SEEN.mean.float() + factor * sum(
            max(products[i], 0.0) * coder.decoder[i] for i in best
        )
        assert torch.allclose(coder(row[None])[0], made, atol=1e-4)
    assert judge(coder, ROWS).l0 == pytest.approx(5, abs=0.05)


def test_its_factor_is_the_best_one() -> None:
    coder = random_dictionary(SEEN, 37, 5)
    best = judge(coder, SEEN.sample).squared_error
    for change in (0.9, 1.1):
        other = random_dictionary(SEEN, 37, 5)
        other.encoder.mul_(change)
        assert judge(other, SEEN.sample).squared_error > best
    assert judge(coder, ROWS).explained_variance is not None
    assert (judge(coder, ROWS).explained_variance or 0) > 0
    assert not torch.equal(coder.decoder, random_dictionary(SEEN, 37, 5, seed=1).decoder)


@pytest.mark.parametrize("kind", small_coders.KINDS)
@pytest.mark.parametrize("l0", [1.0, 2.5, 5.0])
def test_an_untrained_coder_of_any_kind_has_the_l0_that_is_asked_for(kind: str, l0: float) -> None:
    rows = small_coders.small_rows(700).float()
    seen = seen_rows(rows)["input"]
    trained = small_coders.small_coder(kind)
    fresh = untrained(trained, seen, l0, seed=4)
    assert type(fresh) is type(trained)
    assert (fresh.width, fresh.latents) == (trained.width, trained.latents)
    wanted = round(l0) if "k" in trained.settings else l0
    # Of 13 latents, fewer than 5 may be positive at a row.
    assert judge(fresh, rows).l0 == pytest.approx(wanted, abs=0.25 if kind == "topk" else 0.06)
    again = untrained(trained, seen, l0, seed=4)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    other = untrained(trained, seen, l0, seed=5)
    assert not torch.equal(other.decoder, fresh.decoder)


def test_a_kind_that_cannot_have_that_l0_is_refused() -> None:
    seen = seen_rows(small_coders.small_rows(200).float())["input"]
    with pytest.raises(ValueError, match="kind jump_relu must have an L0 of 13 .* it has 6"):
        untrained(small_coders.small_coder("jump_relu"), seen, 13.0)
