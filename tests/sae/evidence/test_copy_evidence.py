"""The copy feature of the bundled induction model, against forwards with torch's own hooks."""

import pytest
import torch

from analysis.statistics import half_of
from probes.edits.apply import edit
from probes.inputs import Example
from probes.loading import load
from probes.readers import read_examples
from sae import (
    SubjectActivations,
    ablate_feature,
    copy_evidence,
    direct_attribution,
    load_coder,
)
from sae.evidence.copy_evidence import _pushed

SITE = "language.L1"


@pytest.fixture(scope="module")
def subject():
    return load("repeat-lm")


@pytest.fixture(scope="module")
def coder():
    return load_coder("repeat-lm")


def rows(subject, examples):
    return SubjectActivations(subject, examples, sites=SITE)


def test_a_feature_carries_the_copy_by_attribution_and_by_ablation(subject, coder):
    found = copy_evidence(subject, coder, rows(subject, list(read_examples("repeats", "language"))))
    assert found.copying >= 10
    # It fires where a word is copied and hardly anywhere else, most often for one word.
    assert found.copying >= 0.8 * found.firings
    assert found.of_word >= 0.5 * found.copying
    assert found.attributed.low > 10 * found.chance.high
    assert found.ablated.high < 0
    assert found.difference.high < 0
    # Only the other half of the examples was measured than it was chosen on.
    assert found.attributed.examples <= 64 - sum(
        half_of(f"repeat-{i:03d}", 0) == 0 for i in range(64)
    )


def test_without_copies_a_feature_cannot_be_chosen(subject, coder):
    texts = [Example("a", text="t01 t02 t03 t04 t05"), Example("b", text="t07 t08 t09")]
    for name in range(20):  # both halves
        texts.append(Example(f"c{name}", text="t11 t12 t13"))
    with pytest.raises(ValueError, match="Some word must be copied"):
        copy_evidence(subject, coder, rows(subject, texts))
    with pytest.raises(ValueError, match="Latent 3 must fire where a word is copied"):
        copy_evidence(subject, coder, rows(subject, texts), 3)


def test_against_hooks_and_loops(subject, coder):
    """Every number again: copies by loops, ablation by a hook on the output projection."""
    examples = list(read_examples("repeats", "language", 12))
    latent = copy_evidence(subject, coder, rows(subject, examples), 1012).latent
    found = copy_evidence(subject, coder, rows(subject, examples), latent, controls=2, seed=3)
    layer = subject.model.model.layers[1].self_attn.o_proj
    dice = torch.randperm(coder.latents, generator=torch.Generator().manual_seed(3)).tolist()
    drawn = [other for other in dice if other != latent][:2]
    told = {"attributed": [], "chance": [], "ablated": [], "control": []}
    for example in examples:
        batch = subject.prepare(examples=[example])
        ids = batch.tensors["input_ids"][0].tolist()
        z = []
        hook = layer.register_forward_pre_hook(lambda _, given, z=z: z.append(given[0].clone()))
        with torch.no_grad():
            plain = subject.model(**batch.tensors).logits[0].double().log_softmax(-1)
        hook.remove()
        strength = coder.encode(z[0][0])[:, latent]

        def without(direction, strength=strength, batch=batch):
            def change(_, given):
                return (given[0] - strength[None, :, None] * direction,)

            hook = layer.register_forward_pre_hook(change)
            with torch.no_grad():
                logits = subject.model(**batch.tensors).logits[0].double().log_softmax(-1)
            hook.remove()
            return logits

        own = without(coder.decoder[latent])
        size = coder.decoder[latent].norm()
        others = [without(size * coder.decoder[o] / coder.decoder[o].norm()) for o in drawn]
        for at in range(1, len(ids) - 1):
            before = [p for p in range(1, at) if ids[p] == ids[at]]
            if not before or ids[before[-1] + 1] != ids[at + 1] or not strength[at]:
                continue
            word = ids[at + 1]
            told["ablated"].append(float(own[at, word] - plain[at, word]))
            mean = sum(float(o[at, word] - plain[at, word]) for o in others) / 2
            told["control"].append(mean)
            (direct,) = direct_attribution(subject, batch, coder, SITE, latent, (0, at))
            brought = [max(value, 0.0) for value in direct.by_source.tolist()]
            told["attributed"].append(brought[before[-1] + 1] / sum(brought))
            told["chance"].append(1 / (at + 1))
    assert found.copying == len(told["ablated"]) > 0
    for name, values in told.items():
        wanted = sum(values) / len(values)
        assert getattr(found, name).value == pytest.approx(wanted, abs=2e-4), name


def test_the_control_acts_where_the_ablation_does(subject):
    """Pushed along its own row, a feature is taken out, in every word of the batch."""
    coder = load_coder("repeat-lm")
    coder.about["provenance"]["roles"] = ["text"]  # not at the first, special position
    with torch.no_grad():
        coder.encoder_bias[1012] += 5.0  # fires everywhere
    batch = subject.prepare(examples=list(read_examples("repeats", "language", 3)))
    logits, touched = [], []
    pushed = _pushed(coder, SITE, 1012, 1012)
    for change in (ablate_feature(coder, 1012, SITE), pushed):
        with edit(subject, change) as reports:
            logits.append(subject.forward(batch).logits)
        touched.append(reports[0].touched)
    assert touched[0] == touched[1]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_a_feature_that_its_constant_makes_fire_has_no_share_of_sources(subject):
    coder = load_coder("repeat-lm")
    with torch.no_grad():
        coder.encoder[1012] = 0.0
        coder.encoder_bias[1012] = 50.0
    given = rows(subject, list(read_examples("repeats", "language", 3)))
    found = copy_evidence(subject, coder, given, 1012, controls=1)
    assert found.copying == found.ablated.firings > 0
    assert found.attributed.firings == found.chance.firings == 0
