"""What a feature says: against the weights by hand, and against logits that really move."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes.direct.direct_path import direct_contributions
from probes.heads import Site
from sae.reading.logit_effects import _without_bias, logit_effects
from tests.drawn_coders import batch_of, drawn_coder, subject_of


def test_gpt2_by_hand() -> None:
    subject = subject_of("gpt2")
    model: Any = subject.model
    coder = drawn_coder(12)
    found = logit_effects(subject, coder, "language.L0", [7, 2])
    output = model.transformer.h[0].attn.c_proj.weight
    norm, words = model.transformer.ln_f, model.lm_head.weight
    for number, latent in enumerate((7, 2)):
        written = coder.decoder[latent] @ output
        expected = ((written - written.mean()) * norm.weight) @ words.T
        assert torch.allclose(found.effects[number], expected, atol=1e-4)
    row = found.effects[1]
    best, worst = int(row.argmax()), int(row.argmin())
    assert found.top(2, 1) == [(best, found.names[best], pytest.approx(float(row[best])))]
    assert found.bottom(2, 1)[0][0] == worst
    values = [value for _, _, value in found.top(2, 5)]
    assert values == sorted(values, reverse=True)
    assert found.words and len(found.names) == 31


def test_grouped_queries_and_rms_norms_agree_with_the_direct_path() -> None:
    """The direct effect of z on a logit is the frozen scale times this effect."""
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = drawn_coder(60)
    found = logit_effects(subject, coder, "language.L1", 5)
    direction = coder.decoder[5].reshape(6, 10)
    moved = torch.stack(
        [
            torch.einsum(
                "qhw,hw->q",
                direct_contributions(
                    subject, batch, lambda out, w=word: out.logits[:, 5, w]
                ).gradient[Site("language", 1)][1],
                direction,
            )[5]
            for word in (3, 9, 14, 20)
        ]
    )
    effects = found.effects[0][[3, 9, 14, 20]]
    ratio = moved / effects
    assert torch.allclose(ratio, ratio[0].expand(4), rtol=1e-3)
    assert float(ratio[0]) > 0


def test_a_class_head_that_reads_two_vectors_has_two_slots() -> None:
    subject = subject_of("shapes-vit")
    coder = drawn_coder(96)
    cls = logit_effects(subject, coder, "vision.L3", 4)
    patches = logit_effects(subject, coder, "vision.L3", 4, slot=1)
    model: Any = subject.model
    block = model.dinov2_with_registers.encoder.layer[3]
    written = coder.decoder[4] @ block.attention.o_proj.weight.T
    written = written * block.layer_scale1.lambda1
    norm, head = model.dinov2_with_registers.layernorm, model.classifier.weight
    read = (written - written.mean()) * norm.weight
    assert torch.allclose(cls.effects[0], read @ head[:, :96].T, atol=1e-4)
    assert torch.allclose(patches.effects[0], read @ head[:, 96:].T, atol=1e-4)
    assert cls.slots == 2 and not cls.words and cls.names[0] == "circle"
    with pytest.raises(ValueError, match="`slot` must be between 0 and 1"):
        logit_effects(subject, coder, "vision.L3", 4, slot=2)


def test_a_large_bias_in_half_precision_costs_no_digits() -> None:
    head = torch.nn.Linear(6, 5).bfloat16()
    with torch.no_grad():
        head.bias.fill_(300.0)
    read = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = read.float() @ head.weight.float().T
    found = _without_bias(head, read).float()
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3)
    other = torch.nn.Sequential(torch.nn.Linear(6, 5))
    expected = read.float() @ other[0].weight.T
    assert torch.allclose(_without_bias(other, read.float()), expected, atol=1e-5)


def test_towers_without_logits_are_refused() -> None:
    subject = subject_of("shapes-llava")
    with pytest.raises(ValueError, match="they are read from tower 'language'"):
        logit_effects(subject, drawn_coder(96), "vision.L0", 1)
    found = logit_effects(subject, drawn_coder(128), "language.L0", [1, 2])
    assert found.effects.shape[0] == 2 and "<eos>" in found.names
