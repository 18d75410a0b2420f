"""Effects against hand-computed values and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from analysis.importance.effects import (
    DIFFERENTIABLE,
    EFFECTS,
    effect_named,
    jensen_shannon_bits,
)

INTACT = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.5, 3.0]])
CHANGED = torch.tensor([[1.0, 1.5, 1.0], [0.5, 0.0, 2.0]])
TARGETS = torch.tensor([[0, 1], [2, 0]])
NONE = torch.tensor([-1, -1])


def _change(name, wrong=NONE):
    effect = effect_named(name)
    kept = effect.kept(INTACT, TARGETS, wrong)
    return effect.change(kept, CHANGED, TARGETS, wrong)


def _log_softmax(row):
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def test_cross_entropy_is_the_rise_of_the_loss_at_target_and_at_the_shuffled_target():
    expected = [
        [_log_softmax(i)[t] - _log_softmax(c)[t] for t in targets]
        for i, c, targets in zip(INTACT.tolist(), CHANGED.tolist(), TARGETS.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        _change("cross_entropy"), torch.tensor(expected).double(), atol=1e-6, rtol=1e-5
    )
    assert _change("cross_entropy")[0, 0] > 0 > _change("cross_entropy")[0, 1]


def test_probability_logit_and_accuracy_by_hand():
    intact, changed = INTACT.softmax(-1), CHANGED.softmax(-1)
    assert _change("probability")[0, 0] == pytest.approx(float(intact[0, 0] - changed[0, 0]))
    assert _change("logit").tolist() == [[1.0, -1.5], [1.0, 0.0]]
    # Row 0 turns wrong (class 1 wins), row 1 stays right.
    assert _change("accuracy")[:, 0].tolist() == [1.0, 0.0]


def test_margin_is_against_the_best_other_or_the_given_wrong_one():
    # Row 0: intact 2 - 1, changed 1 - 1.5; row 1: intact 3 - 0.5, changed 2 - 0.5.
    assert _change("margin")[:, 0].tolist() == [1.5, 1.0]
    given = torch.tensor([2, 1])
    # Row 0: (2 - 1) - (1 - 1); row 1: (3 - 0.5) - (2 - 0).
    assert _change("margin", given)[:, 0].tolist() == [1.0, 0.5]


def test_divergence_equals_scipy_is_symmetric_and_lies_between_0_and_1():
    torch.manual_seed(3)
    p, q = torch.randn(5, 7).mul(3).log_softmax(-1), torch.randn(5, 7).mul(3).log_softmax(-1)
    ours = jensen_shannon_bits(p, q)
    theirs = [
        jensenshannon(a, b, base=2) ** 2
        for a, b in zip(p.exp().double().numpy(), q.exp().double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)
    torch.testing.assert_close(ours, jensen_shannon_bits(q, p))
    far = torch.tensor([[100.0, -100.0], [-100.0, 100.0]]).log_softmax(-1)
    assert jensen_shannon_bits(far[:1], far[1:]).item() == pytest.approx(1.0)
    assert jensen_shannon_bits(far[:1], far[:1]).item() == 0.0


def test_divergence_of_distributions_with_empty_places_is_finite():
    one = torch.tensor([[0.0, -math.inf]])
    other = torch.tensor([[-math.inf, 0.0]])
    assert jensen_shannon_bits(one, other).item() == pytest.approx(1.0)
    assert jensen_shannon_bits(one, one).item() == pytest.approx(0.0)


def test_flip_counts_other_answers_and_cosine_is_a_distance():
    assert _change("flip").tolist() == [[1.0], [0.0]]
    effect = EFFECTS["cosine"]
    kept = effect.kept(torch.tensor([[3.0, 0.0], [1.0, 1.0]]), TARGETS, NONE)
    changed = torch.tensor([[0.0, 2.0], [-2.0, -2.0]])
    assert effect.change(kept, changed, TARGETS, NONE)[:, 0].tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_effect_is_the_drop_of_an_objective_with_a_gradient(name):
    read = INTACT.clone().requires_grad_()
    objective = EFFECTS[name].objective
    assert objective is not None
    value = objective(read, TARGETS, NONE)
    (gradient,) = torch.autograd.grad(value[:, 0].sum(), [read])
    assert gradient.abs().sum() > 0
    dropped = value.double() - objective(CHANGED, TARGETS, NONE).double()
    torch.testing.assert_close(dropped.detach(), _change(name))


def test_an_unknown_effect_is_a_sentence():
    with pytest.raises(ValueError, match="An effect must be one of cross_entropy, .*got 'loss'"):
        effect_named("loss")


@pytest.mark.parametrize("name", ["jsd", "flip", "accuracy", "cross_entropy", "margin"])
def test_a_broken_output_is_no_small_effect(name):
    broken = CHANGED.clone()
    broken[1, 0] = math.nan
    effect = effect_named(name)
    kept = effect.kept(INTACT, TARGETS, NONE)
    change = effect.change(kept, broken, TARGETS, NONE)[:, 0]
    assert change.isnan().tolist() == [False, True]
    assert torch.equal(change[:1], _change(name)[:1, 0])
