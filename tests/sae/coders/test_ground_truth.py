"""Every kind finds the features that rows were made of, and only L1 shrinks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from sparse_dictionary import SparseDictionary
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.registry import CODERS, make_coder
from sae.training.config import TrainConfig
from sae.training.train import train

WIDTH, FEATURES, ACTIVE, BATCH = 64, 256, 3, 256


@dataclass(frozen=True)
class Case:
    """How a kind is trained; seconds each."""

    coder: str
    steps: int
    k: int = ACTIVE
    sparsity: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> TrainConfig:
        return TrainConfig(
            coder=self.coder,
            # Twice the features: some latents always stay unused.
            latents=2 * FEATURES,
            k=self.k,
            tokens=self.steps * BATCH,
            batch_size=BATCH,
            buffer_rows=16_384,
            learning_rate=7e-3,
            sparsity=self.sparsity,
            dead_after=20 * BATCH,
            # At this size the plain path is the faster one.
            fast=False,
            options=self.options,
        )


CASES = {
    "standard": Case("standard", 700, sparsity=1.0),
    "standard, twice the weight": Case("standard", 700, sparsity=2.0),
    "standard of Kissane": Case("standard", 700, sparsity=1.0, options={"form": "kissane"}),
    "gated": Case("gated", 900, sparsity=2.0),
    "topk": Case("topk", 900),
    # Some rows need more than their share: with as many as there are, latents merge features.
    "batch_topk": Case("batch_topk", 1_500, k=ACTIVE + 1),
    # A prefix shorter than the true dictionary must merge features, which is what it is for: the
    # first one is as long as that.
    "matryoshka": Case("matryoshka", 2_200, k=ACTIVE + 1, options={"group_shares": [0.5, 0.5]}),
    "jump_relu": Case("jump_relu", 900),
}


@cache
def dictionary() -> SparseDictionary:
    return SparseDictionary.random(WIDTH, FEATURES, seed=1, active=ACTIVE)


@cache
def rows() -> Tensor:
    return dictionary().rows(40_000, seed=5)


def bias(coder: Coder, x: Tensor) -> float:
    """Relative reconstruction bias about the coder's centre: 1 where nothing is shrunk."""
    with torch.no_grad():
        made = coder(x) - coder.decoder_bias
        return (made.pow(2).sum() / (made * (x - coder.decoder_bias)).sum()).item()


def expected_bias(sparsity: float) -> float:
    """Of lone features read as a - sparsity / 2, in the units the coder was trained in."""
    scale = rows().norm(dim=1).mean().item() / WIDTH**0.5
    strengths = dictionary().strengths(8_192, seed=9)
    strengths = strengths[strengths > 0]
    read = strengths - sparsity * scale / 2
    return (read.pow(2).sum() / (read * strengths).sum()).item()


def test_every_kind_is_tried() -> None:
    assert {case.coder for case in CASES.values()} == set(CODERS)


@pytest.mark.parametrize("name", CASES)
def test_the_features_are_found_and_shrunk_as_theory_says(name: str) -> None:
    case = CASES[name]
    assert dictionary().recovered(make_coder(case.config(), WIDTH).decoder) == 0
    coder = train(case.config(), rows())
    assert dictionary().recovered(coder.decoder) >= 0.9
    found = bias(coder.as_used(), dictionary().rows(8_192, seed=9))
    if case.coder == "standard":
        assert case.sparsity is not None
        assert found == pytest.approx(expected_bias(case.sparsity), abs=0.03)
        assert found < 0.92
    else:
        # Gated has the weight of the strongest shrinkage above, and does not show it.
        assert found == pytest.approx(1, abs=0.03)


def test_theory_tells_the_weights_apart() -> None:
    assert expected_bias(1.0) == pytest.approx(0.896, abs=0.005)
    assert expected_bias(2.0) == pytest.approx(0.795, abs=0.005)
