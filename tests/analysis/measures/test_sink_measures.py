"""Sink measures and what they depend on: thresholds and the length T."""

from __future__ import annotations

import pytest
import torch
from synthetic_calls import null, random_call, scored, text_tokens, value, whole_call

from analysis.engine import Engine
from analysis.measures.sinks import SinkRate
from probes.tokens.map import TokenMap

LENGTHS = (5, 7, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_weight_on_the_first_key_by_length(side: str) -> None:
    tokens = text_tokens([list(range(1, 1 + n)) for n in LENGTHS], side=side)
    call = random_call(tokens, heads=3)
    scores = scored(call, tokens, measures=["first_key"])
    curve = scores.curves["language", 0, "first_key"]
    assert curve.axis == "length" and curve.value.shape == (3, 8)
    pattern = call.pattern()
    for length in range(1, 8):
        harmonic = sum(1 / i for i in range(1, length + 1)) / length
        assert float(curve.null[length]) == pytest.approx(harmonic, abs=1e-6)
        for head in range(3):
            sums = []
            for row, real in enumerate(LENGTHS):
                if real >= length:
                    start = 7 - real if side == "left" else 0
                    weights = [float(pattern[row, head, start + i, start]) for i in range(length)]
                    sums.append(sum(weights) / length)
            found = float(curve.value[head, length])
            assert found == pytest.approx(sum(sums) / len(sums), abs=1e-6)
    assert bool(curve.value[:, 0].isnan().all())


def test_without_a_causal_mask_there_is_no_curve_by_length() -> None:
    tokens = text_tokens([[3, 1, 4, 1, 5]])
    scores = scored(random_call(tokens, causal=False), tokens, measures=["first_key"])
    assert not scores.curves


def test_at_64_tokens_the_curve_has_the_null_of_the_paper() -> None:
    tokens = text_tokens([list(range(71))])
    curve = scored(random_call(tokens), tokens, measures="first_key").curves[
        "language", 0, "first_key"
    ]
    assert float(curve.null[64]) == pytest.approx(0.0741, abs=1e-4)


def test_the_length_counts_real_positions_once_per_sequence() -> None:
    tokens = text_tokens([list(range(n)) for n in LENGTHS], side="left")
    scores = scored(random_call(tokens), tokens, measures=["sequence_length"])
    assert value(scores, "sequence_length", head=2) == pytest.approx(14 / 3)
    assert null(scores, "sequence_length") == pytest.approx(14 / 3)
    assert scores.numerator[:, 0].tolist() == [5, 7, 2]


def test_thresholds_are_a_parameter() -> None:
    tokens = text_tokens([[1, 2, 3]])
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8]])  # alpha_1 = 1.3 / 3
    call = whole_call(pattern[None, None], tokens)
    engine = Engine(None, [SinkRate(eps=(0.43, 0.44))])
    engine.start_batch(TokenMap({"language": tokens}), 1)
    engine.listener(call)
    scores = engine.finish_batch()
    assert value(scores, "sink_rate", "k=1,eps=0.43") == 1
    assert value(scores, "sink_rate", "k=1,eps=0.44") == 0
    assert value(scores, "sink_rate", "any,eps=0.44") == 1  # alpha_2 = 0.9 / 2
    assert len(scores.columns) == 4
