"""The same parity in the settings models are run in: padding, half precision, decoding."""

from __future__ import annotations

from collections import defaultdict
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.listening import listen
from probes.subject import Subject

from .families import FAMILIES
from .family import ids
from .measure import Parity, heard, largest_change, measure, seeded, subject_of
from .reference import EagerMap, eager_maps

BY_NAME = {family.name: family for family in FAMILIES}
MISSING = 3
NEW_TOKENS = 4

PADDED = (
    "gpt2 llama mistral qwen3 gemma2 gpt_oss gpt_bigcode deepseek_v3 bloom mpt falcon gptj opt "
    "gpt_neox phi3 bamba"
).split()
HALF = "gpt2 llama gemma2 mistral bert vit clip llava bart swinv2 qwen2_5_vl wav2vec2".split()
AUTOCAST = "gpt2 llama gemma2 bert vit llava".split()
DECODED = (
    "gpt2 openai_gpt llama mistral qwen3 gemma2 gemma3_text gpt_oss gpt_bigcode deepseek_v3 bloom "
    "mpt falcon gptj gpt_neo xglm jamba qwen3_next"
).split()
WITHOUT_CACHE = ("openai_gpt", "mpt")
DECODED_FROM_ANOTHER = "t5 bart speech_to_text".split()
_HALF_TOLERANCE = 6e-2
"""Fused and eager kernels round differently, and the second layer starts from that."""
_HALF_PRODUCT_TOLERANCE = 2e-2


def left_padded(model: nn.Module, length: int = 11) -> dict[str, Tensor]:
    """Two rows, the first with three pads on the left; positions where the model takes them."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :MISSING] = 0
    tensors = {"input_ids": ids(2, length) * mask, "attention_mask": mask}
    return tensors | positions(model, mask)


def positions(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    if "position_ids" not in signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


@pytest.mark.parametrize("name", PADDED)
def test_left_padding(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    tensors = left_padded(model)
    parity = measure(model, family.build("eager"), tensors, name)
    assert_close(parity, 1e-5)
    assert parity.output_error == 0
    subject, batch = subject_of(model, tensors, name)
    calls, _ = heard(subject, batch)
    short = {"input_ids": tensors["input_ids"][:1, MISSING:]}
    alone, _ = heard(*subject_of(model, short, name))
    for padded, bare in zip(calls, alone, strict=True):
        real = padded.pattern[:1, :, MISSING:, MISSING:]
        assert (real - bare.pattern).abs().max() < 1e-5
        assert padded.pattern[:1, :, MISSING:, :MISSING].abs().max() == 0


@pytest.mark.parametrize("name", HALF)
def test_bfloat16(name: str) -> None:
    family = BY_NAME[name]
    models = [family.build(attention).to(torch.bfloat16) for attention in (None, "eager")]
    tensors = {
        key: value.to(torch.bfloat16) if value.is_floating_point() else value
        for key, value in family.inputs().items()
    }
    parity = measure(models[0], models[1], tensors, name)
    assert_close(parity, _HALF_TOLERANCE)
    assert parity.output_error == 0


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast(name: str) -> None:
    family = BY_NAME[name]
    with torch.autocast("cpu", torch.bfloat16):
        parity = measure(family.build(), family.build("eager"), family.inputs(), name)
    assert_close(parity, _HALF_TOLERANCE)
    assert parity.output_error == 0


def assert_close(parity: Parity, tolerance: float) -> None:
    assert not parity.unmatched
    assert parity.maps > 0
    assert parity.pattern_error <= tolerance
    assert parity.product_error <= min(tolerance, _HALF_PRODUCT_TOLERANCE)


def decoded(subject: Subject, batch: Any) -> tuple[dict[tuple[str, int], list[Tensor]], Tensor]:
    """Patterns of each step by module path and step, and the sequences that were written."""
    steps: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def keep(call: AttentionCall) -> None:
        assert call.worst_mismatch() < 1e-5
        steps[call.path, call.step].append(call.pattern())

    with listen(subject, batch, keep):
        made = subject.generate(batch, NEW_TOKENS, eos_token_id=None, min_new_tokens=NEW_TOKENS)
    return steps, made.sequences


def last_rows(one: EagerMap, query: int, pattern: Tensor) -> Tensor:
    """The eager row of this query over the keys that are still in the cache."""
    whole = one.pattern.reshape(*pattern.shape[:2], *one.pattern.shape[-2:]).float()
    row = whole[:, :, query, : query + 1] if whole.shape[-1] > query else whole[:, :, query]
    gone = row.shape[-1] - pattern.shape[-1]
    assert gone >= 0
    assert row[..., :gone].sum() == 0  # beyond a sliding window nothing is read
    return row[..., gone:]


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", DECODED)
def test_each_decoded_token_equals_the_last_row_of_a_full_forward(name: str, padded: bool) -> None:
    family = BY_NAME[name]
    model, eager = family.build(), family.build("eager")
    tensors = left_padded(model) if padded else {"input_ids": ids(2, 11)}
    subject, batch = subject_of(model, tensors, name)
    plain = subject.generate(batch, NEW_TOKENS, eos_token_id=None, min_new_tokens=NEW_TOKENS)
    steps, sequences = decoded(subject, batch)
    assert torch.equal(plain.sequences, sequences)
    full = {"input_ids": sequences}
    if padded:
        mask = torch.nn.functional.pad(tensors["attention_mask"], (0, NEW_TOKENS), value=1)
        full |= {"attention_mask": mask} | positions(model, mask)
    maps, _ = eager_maps(eager, full)
    compared = 0
    for one in maps:
        for step in range(1, NEW_TOKENS):
            (pattern,) = steps[one.path, step]
            assert pattern.shape[2] == (11 + step if name in WITHOUT_CACHE else 1)
            row = last_rows(one, 10 + step, pattern)
            assert (row - pattern[:, :, -1]).abs().max() < 1e-5
            compared += 1
    assert compared == len(maps) * (NEW_TOKENS - 1) > 0


@pytest.mark.parametrize("name", DECODED_FROM_ANOTHER)
def test_decoding_from_an_encoder_equals_a_full_forward(name: str) -> None:
    family = BY_NAME[name]
    model, eager = family.build(), family.build("eager")
    tensors = family.inputs()
    tensors["decoder_input_ids"][:, 0] = model.config.decoder_start_token_id
    subject, batch = subject_of(model, tensors, name)
    prompt = tensors["decoder_input_ids"].shape[1]
    steps, sequences = decoded(subject, batch)
    full = tensors | {"decoder_input_ids": sequences}
    maps, _ = eager_maps(eager, full)
    layout = {site.path: site for site in subject.layout.sites}
    towers = set()
    for one in maps:
        tower = layout[one.path].site.tower
        towers.add(tower)
        for step in range(1, NEW_TOKENS):
            if tower == "encoder":
                assert (one.path, step) not in steps
                continue
            (pattern,) = steps[one.path, step]
            whole = one.pattern.reshape(*pattern.shape[:2], *one.pattern.shape[-2:]).float()
            row = whole[:, :, prompt - 1 + step, : pattern.shape[-1]]
            assert (row - pattern[:, :, 0]).abs().max() < 1e-5
    assert towers == {"encoder", "decoder", "cross"}


def test_a_tap_that_listens_to_one_site_leaves_the_outputs_alone() -> None:
    family = BY_NAME["llama"]
    subject, batch = subject_of(family.build(), left_padded(family.build()), "llama")
    plain = seeded(subject, batch)
    seen = []
    site = subject.layout.sites[1].site
    with listen(subject, batch, seen.append, sites=[site]):
        tapped = seeded(subject, batch)
    assert largest_change(plain, tapped) == 0
    assert [call.site for call in seen] == [site]
