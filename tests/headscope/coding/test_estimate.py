"""What a training will cost: sizes are exact, times are positive."""

import pytest

from headscope.coding.estimate import estimate_training
from headscope.coding.training import training_rows
from sae.training import TrainConfig


def test_sizes_are_those_of_the_coders(subject):
    how = TrainConfig(latents=67, k=3, tokens=4_000, batch_size=250, buffer_rows=1_000)
    parts, rows = training_rows(subject, "repeats", ["language.*"], None, None, 0.1, 30, 16, 0)
    found = estimate_training("m", "repeats", len(parts.train), rows, how)
    assert [site.site for site in found.sites] == ["language.L0", "language.L1"]
    parameters = 2 * 67 * 128 + 67 + 128
    assert [site.parameters for site in found.sites] == [parameters] * 2
    assert found.memory_bytes == 2 * 4 * (4 * parameters + 1_000 * 128)
    assert (found.steps, found.tokens) == (16, 4_000)
    every = sum(chunk["language.L1"].shape[0] for chunk in rows.chunks(0))
    assert found.epochs == pytest.approx(4_000 / every, rel=0.3)
    assert found.seconds > found.forward_seconds > 0
    assert found.lines()[-1] == "Nothing was written."
    twice = estimate_training("m", "repeats", len(parts.train), rows, how, coders=2)
    assert twice.memory_bytes == 2 * 4 * (2 * 4 * parameters + 1_000 * 128)
