"""One small bundled subject for all tests of runs."""

import pytest

from headscope.scorer import chosen_measures


@pytest.fixture(scope="session")
def subject():
    from probes.loading import load

    return load("repeat-lm")


@pytest.fixture(scope="session")
def few():
    """Measures that are quick and of different kinds; all of them apply to text."""
    names = "entropy,previous_token,z_norm"
    assert len(chosen_measures(names.split(","))) == 3
    return names
