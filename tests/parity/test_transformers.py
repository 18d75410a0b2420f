"""Families of transformers: what the tap sees equals what the model's own eager code computes."""

from __future__ import annotations

import pytest

from probes.load_error import LoadError

from .checks import assert_parity, assert_refused
from .families import FAMILIES
from .family import Family
from .measure import measure, subject_of
from .reference import eager_maps, run

CAPTURED = [family for family in FAMILIES if family.towers]
REFUSED = [family for family in FAMILIES if not family.towers]


def _named(families: list[Family]) -> list:
    return [pytest.param(family, id=family.name) for family in families]


@pytest.mark.parametrize("family", _named(CAPTURED))
def test_a_tapped_family_equals_its_eager_self(family: Family) -> None:
    parity = measure(
        family.build(), family.build("eager"), family.inputs(), family.name, family.aside
    )
    mask = family.inputs().get("attention_mask")
    padded = mask is not None and bool((mask == 0).any())
    assert_parity(parity, family.towers, family.refused, fast_path=family.fast_path, padded=padded)


@pytest.mark.parametrize("family", _named(REFUSED))
def test_a_family_without_token_patterns_is_refused_by_name(family: Family) -> None:
    subject, _ = subject_of(family.build(), family.inputs(), family.name)
    assert subject.layout.towers == {}
    assert_refused(subject.layout, family.refused)
    with pytest.raises(LoadError, match="has no softmax attention between tokens"):
        _ = subject.towers


def test_the_table_covers_what_was_promised() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    assert len(CAPTURED) >= 60
    kinds = {kind for family in CAPTURED for kind in family.kinds}
    assert {"gqa", "mla", "softcap", "sinks", "window", "position bias", "alibi"} <= kinds
    groups = {family.group for family in CAPTURED}
    assert groups == {
        "language",
        "encoder",
        "encoder-decoder",
        "vision",
        "pair",
        "multimodal",
        "speech",
    }


def test_the_reference_would_notice_a_wrong_pattern() -> None:
    """The oracle must be able to fail: other weights give other patterns, far beyond 1e-5."""
    family = next(f for f in FAMILIES if f.name == "llama")
    other = family.build("eager")
    other.get_submodule("model.layers.1.self_attn.q_proj").weight.data.mul_(1.01)
    parity = measure(family.build(), other, family.inputs(), family.name)
    assert not parity.unmatched
    assert parity.pattern_error > 1e-3


def test_the_reference_reads_what_output_attentions_gives() -> None:
    """Where ``output_attentions`` is the per-head pattern, both oracles agree bit by bit."""
    for name in ("gpt2", "qwen3", "bert", "vit"):
        family = next(f for f in FAMILIES if f.name == name)
        model = family.build("eager")
        maps, _ = eager_maps(model, family.inputs())
        given = run(model, family.inputs() | {"output_attentions": True}).attentions
        assert len(given) == len(maps) == 2
        for one, other in zip(given, maps, strict=True):
            assert one.equal(other.pattern)
