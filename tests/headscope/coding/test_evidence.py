"""What features are shown to do, on what is known of the bundled examples."""

from itertools import pairwise

import pytest
import torch

from analysis.statistics import half_of
from headscope.coding import box_evidence, copy_evidence
from headscope.coding.examples import rows_of
from probes.loading import load
from probes.readers import read_examples
from sae import copy_evidence as measured
from sae import load_coder

SITE = "language.L2"


@pytest.fixture(scope="module")
def describer():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def coder():
    return load_coder("shapes-llava")


def rows(describer, limit):
    examples = list(read_examples("scenes", "vision-language", limit))
    return rows_of(describer, examples, SITE, batch_size=16)


def test_a_feature_reads_the_box_of_what_is_named(describer, coder):
    found = box_evidence(describer, coder, rows(describer, 50))
    assert found.on_box.firings >= 20
    assert found.difference.low > 0.2
    assert found.on_box.low > 2 * found.shuffled.high
    assert found.from_image.low > 0.5
    assert sum(found.names.values()) == found.on_box.firings
    assert found.kind in found.names
    # Only the other half of the examples was measured than it was chosen on.
    names = [example.id for example in read_examples("scenes", "vision-language", 50)]
    assert found.on_box.examples <= sum(half_of(name, 0) == 1 for name in names) < 50


def test_objects_are_those_of_the_examples(describer, coder):
    """A latent that always fires names every object in every answer, as words say it."""
    with torch.no_grad():
        coder = load_coder("shapes-llava")
        coder.encoder_bias[739] += 100
    found = box_evidence(describer, coder, rows(describer, 7), 739)
    names = []
    for example in read_examples("scenes", "vision-language", 7):
        words = example.answer.replace(",", " ").replace(".", " ").split()
        pairs = [f"{one} {two}" for one, two in pairwise(words)]
        names += [pair for pair in pairs if pair in example.objects]
    assert len(names) > 7
    # Two words, each predicted one position before.
    assert dict(found.names) == {name: 2 * names.count(name) for name in set(names)}


def test_the_copy_is_measured_by_the_settings_that_are_given(subject):
    coder = load_coder("repeat-lm")
    examples = list(read_examples("repeats", "language", 8))
    given = rows_of(subject, examples, "language.L1")
    found = copy_evidence(subject, coder, given, 1012, controls=2, seed=3)
    assert found == measured(subject, coder, given, 1012, controls=2, seed=3)
    assert found != measured(subject, coder, given, 1012, controls=3, seed=3)
    assert found != measured(subject, coder, given, 1012, controls=2, seed=4)
