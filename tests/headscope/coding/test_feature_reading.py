"""What a feature reads and writes, put together from the parts of sae."""

import math

import pytest
import torch

from headscope.coding.examples import rows_of
from headscope.coding.feature_reading import read_feature, strongest_sources
from headscope.coding.head_reading import read_head
from headscope.plan import AskedWrongly
from probes.loading import load
from probes.readers import read_examples
from sae import decoder_shares, load_coder

COPY = 1012


def test_the_copy_feature_of_the_induction_model(subject):
    found = read_feature("repeat-lm", COPY, subject, "repeats", examples=3)
    assert found.site == "language.L1"
    assert found.words[0][0].strip() == "t00"
    assert found.words[0][1] > 2 * found.words[1][1]
    assert len(found.views) == 3
    assert [view.firing.strength for view in found.views] == sorted(
        (view.firing.strength for view in found.views), reverse=True
    )
    for view in found.views:
        window, brought = strongest_sources(view)[0]
        assert window.words[window.centre].strip() == "t00"
        direct = view.attribution
        assert brought == pytest.approx(float(direct.by_source.max()))
        assert direct.constant + float(direct.joint.sum()) == pytest.approx(
            direct.pre_activation, abs=1e-4
        )
    assert sum(found.decoder_shares) == pytest.approx(1)
    assert sum(found.firing_shares) == pytest.approx(1)
    assert found.density == found.firings / found.rows
    record = found.record()
    assert record["examples"][0]["sources"][0]["words"][0].strip() == "t00"
    assert record["examples"][0]["example"] == found.views[0].firing.example


def test_sources_on_a_picture():
    subject = load("shapes-llava")
    coder = load_coder("shapes-llava")
    examples = list(read_examples("scenes", "vision-language", 6))
    with torch.no_grad():
        rows = torch.cat(
            [c["language.L2"] for c in rows_of(subject, examples, "language.L2").chunks(0)]
        )
        latent = int((coder.encode(rows) != 0).sum(0).argmax())
    found = read_feature(coder, latent, subject, "scenes", examples=2, limit=6)
    sources = found.record()["examples"][0]["sources"]
    assert sources and {"tower", "role", "brought"} <= set(sources[0])
    patches = [source for view in found.record()["examples"] for source in view["sources"]]
    assert any("box" in source and source["role"] == "image" for source in patches)


def test_a_tower_without_logits_says_why_there_are_no_words(subject):
    describer = load("shapes-llava")
    from headscope.coding.training import train_coders
    from sae.training import TrainConfig

    how = TrainConfig(latents=50, k=3, tokens=600, batch_size=100, buffer_rows=200)
    coder = train_coders(describer, "scenes", sites="vision.L1", config=how, limit=20)["vision.L1"]
    found = read_feature(coder, 7, describer, "scenes", examples=1, limit=4)
    assert found.words == () and "tower 'vision'" in found.no_words


def test_the_features_of_a_head(subject):
    found = read_head("repeat-lm", "language.L1H3", subject, "repeats", features=4)
    shares = decoder_shares(load_coder("repeat-lm"), 8)[:, 3]
    assert [share for _, share, _, _ in found.features] == sorted(
        (share for _, share, _, _ in found.features), reverse=True
    )
    for latent, share, firings, words in found.features:
        assert share == pytest.approx(float(shares[latent]))
        assert firings > 0 and words
    assert 1 <= found.roles <= 4
    assert found.null[1] <= found.null[0] <= found.null[2] <= 4
    assert found.record()["features"][0]["latent"] == found.features[0][0]


def test_more_features_than_fire_leave_the_number_of_roles_open(subject):
    found = read_head("repeat-lm", "language.L1H0", subject, "repeats", features=2000, limit=2)
    assert math.isnan(found.roles) or len(found.features) < 1024


def test_refusals(subject):
    with pytest.raises(AskedWrongly, match="A latent must be between 0 and 1023, got 1024"):
        read_feature("repeat-lm", 1024, subject)
    with pytest.raises(AskedWrongly, match="one of language.L1H0 to language.L1H7"):
        read_head("repeat-lm", "language.L1H8", subject, "repeats", limit=4)
    with pytest.raises(AskedWrongly, match="one of language.L1H0 to language.L1H7"):
        read_head("repeat-lm", "language.L0H1", subject, "repeats", limit=4)
    with pytest.raises(AskedWrongly, match="must be written like 'language.L3H5'"):
        read_head("repeat-lm", "L0H1", subject)
    with pytest.raises(AskedWrongly, match="must be the one that the coder was trained on"):
        read_feature("repeat-lm", 3, load("prose-lm"))
