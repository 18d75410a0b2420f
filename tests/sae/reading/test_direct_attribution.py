"""Direct attribution against brute force: values set to zero, heads taken away, loops."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.capture import capture
from probes.edits import knock_out, scale, zero
from probes.edits.apply import edit
from probes.heads import Head, Site
from probes.inputs import Batch
from probes.listening import listen
from probes.subject import Subject
from probes.tap import TapError
from sae.coders.coder import Coder
from sae.coders.gated import Gated
from sae.coders.jump_relu import JumpReLU
from sae.coders.topk import TopK
from sae.reading.destinations import key_positions
from sae.reading.direct_attribution import DirectAttribution, direct_attribution
from tests import tiny_models as tiny
from tests.drawn_coders import IDS, batch_of, drawn_coder, redrawn, subject_of

PLACES = [
    ("repeat-lm", "language.L1", (1, -2)),
    ("shapes-vit", "vision.L2", (1, 11)),
    ("shapes-llava", "language.L3", (2, -1)),
    ("shapes-llava", "vision.L1", (1, 5)),
    ("shapes-llava-sinks", "language.L2", (0, -3)),
    ("gpt2", "language.L1", (0, 5)),
    ("gqa", "language.L2", (0, 4)),
    ("gpt_oss", "language.L0", (1, 6)),
    ("gpt_oss", "language.L1", (1, 6)),
    ("t5", "encoder.L1", (0, 3)),
    ("t5", "decoder.L1", (1, 4)),
    ("t5", "cross.L1", (1, 4)),
]


def coder_at(subject: Subject, site: str, **settings: Any) -> Coder:
    place = next(one for one in subject.layout.sites if str(one.site) == site)
    return drawn_coder(place.heads * place.value_width, **settings)


def pre_at(
    subject: Subject, batch: Batch, coder: Coder, site: str, place: tuple[int, int]
) -> Tensor:
    """Pre-activations at a place, from a plain capture of z."""
    z = capture(subject, batch, z=[site]).z(site)
    row = z[place[0], place[1]].flatten()
    return coder.pre_activations(row[None].to(coder.encoder.dtype))[0]


@contextmanager
def value_zeroed(module: nn.Module, row: int, position: int, columns: slice) -> Iterator[None]:
    """Zero some numbers of a value map's output at one position."""

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[row, position, columns] = 0
        return output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "site", "place"), PLACES)
def test_heads_and_sources_add_up_to_the_pre_activation(
    name: str, site: str, place: tuple[int, int]
) -> None:
    subject, batch = subject_of(name), batch_of(name)
    coder = coder_at(subject, site)
    expected = pre_at(subject, batch, coder, site, place)
    z = capture(subject, batch, z=[site]).z(site)[place[0], place[1]]
    found = direct_attribution(subject, batch, coder, site, list(range(23)), place)
    assert [one.latent for one in found] == list(range(23))
    for one in found:
        given = coder.encoder[one.latent].reshape(z.shape)
        heads = (z * given).sum(1).double()
        assert torch.allclose(one.by_head, heads, atol=1e-4)
        assert abs(float(one.by_source.sum()) + one.constant - float(expected[one.latent])) < 1e-4
        assert abs(one.pre_activation - float(expected[one.latent])) < 1e-4
        assert torch.equal(one.joint.sum(0), one.by_source)
    strengths = coder.encode(z.reshape(1, -1))[0]
    assert [one.active for one in found] == (strengths != 0).tolist()
    assert 0 < sum(one.active for one in found) < 23
    assert [one.strength for one in found] == pytest.approx(strengths.tolist(), abs=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("gqa", 1), ("gpt_oss", 0), ("gpt_oss", 1)])
def test_each_source_and_group_is_what_its_value_brings(name: str, layer: int) -> None:
    subject, batch = subject_of(name), batch_of(name)
    model: Any = subject.model
    site, place, latent = f"language.L{layer}", (1, 6), 4
    coder = coder_at(subject, site)
    one = direct_attribution(subject, batch, coder, site, latent, place)[0]
    whole = pre_at(subject, batch, coder, site, place)[latent]
    values = model.model.layers[layer].self_attn.v_proj
    for source in range(7):
        for group in range(2):
            with value_zeroed(values, 1, source, slice(group * 10, group * 10 + 10)):
                left = pre_at(subject, batch, coder, site, place)[latent]
            brought = one.joint[3 * group : 3 * group + 3, source].sum()
            assert float(whole - left) == pytest.approx(float(brought), abs=1e-4)
    assert float(one.joint.abs().max()) > 0.02


def test_each_head_is_what_taking_it_away_takes() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    site, place, latent = "language.L2", (1, -1), 3
    coder = coder_at(subject, site)
    one = direct_attribution(subject, batch, coder, site, latent, place)[0]
    whole = pre_at(subject, batch, coder, site, place)[latent]
    for head in range(8):
        with edit(subject, zero(Head("language", 2, head))):
            left = pre_at(subject, batch, coder, site, place)[latent]
        assert float(whole - left) == pytest.approx(float(one.by_head[head]), abs=1e-4)


def test_joint_equals_four_loops_over_the_pattern_and_values() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    site, coder = "language.L0", coder_at(subject_of("gpt2"), "language.L0")
    model: Any = subject.model
    read: dict[str, Tensor] = {}
    handle = model.transformer.h[0].attn.c_attn.register_forward_hook(
        lambda m, a, out: read.update(qkv=out.detach())
    )
    pattern = capture(subject, batch, patterns=[site]).pattern(site)
    handle.remove()
    value = read["qkv"][..., 24:].unflatten(-1, (3, 4))
    one = direct_attribution(subject, batch, coder, site, 9, (0, 6))[0]
    weight = coder.encoder[9].reshape(3, 4)
    for head in range(3):
        for source in range(7):
            total = 0.0
            for column in range(4):
                total += float(value[0, source, head, column] * weight[head, column])
            expected = float(pattern[0, head, 6, source]) * total
            assert float(one.joint[head, source]) == pytest.approx(expected, abs=1e-5)
    assert float(one.joint[:, :3].abs().max()) == 0  # padding brings nothing


def test_a_learned_sink_takes_mass_and_the_sum_still_holds() -> None:
    subject, batch = subject_of("gpt_oss"), batch_of("gpt_oss")
    site = "language.L1"
    coder = coder_at(subject, site)
    pattern = capture(subject, batch, patterns=[site]).pattern(site)[1, :, 6]
    assert float(pattern.sum(-1).max()) < 0.99
    one = direct_attribution(subject, batch, coder, site, 2, (1, 6))[0]
    assert one.mismatch < 1e-5
    renormalised = (one.joint / pattern.sum(-1, keepdim=True)).sum()
    assert abs(float(renormalised) + one.constant - one.pre_activation) > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "gqa", "gpt_oss"])
def test_a_double_model_adds_up_to_the_last_digits(kind: str) -> None:
    model = redrawn(copy.deepcopy(subject_of(kind).model).double(), size=0.2)
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    site = "language.L1"
    coder = coder_at(subject, site).double()
    expected = pre_at(subject, batch, coder, site, (1, 5))
    for one in direct_attribution(subject, batch, coder, site, [0, 8], (1, 5)):
        assert abs(float(one.joint.sum()) + one.constant - float(expected[one.latent])) < 1e-10
        assert one.mismatch < 1e-10


def test_half_precision_is_read_in_double() -> None:
    whole, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    half = Subject(copy.deepcopy(whole.model).bfloat16(), whole.processor)
    coder = coder_at(whole, "language.L1")
    exact = direct_attribution(whole, batch, coder, "language.L1", 6, (0, -1))[0]
    one = direct_attribution(half, batch, coder, "language.L1", 6, (0, -1))[0]
    assert one.joint.dtype == torch.float64
    assert 1e-6 < one.mismatch < 2e-2
    size = float(exact.joint.abs().sum())
    assert float((one.joint - exact.joint).abs().sum()) < 0.1 * size


@pytest.mark.parametrize("kind", [TopK, Gated, JumpReLU])
def test_every_kind_of_coder_is_read_by_its_pre_activation(kind: type[Coder]) -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    for centred in (True, False):
        coder = coder_at(subject, "language.L1", kind=kind, centred=centred)
        expected = pre_at(subject, batch, coder, "language.L1", (1, 3))
        one = direct_attribution(subject, batch, coder, "language.L1", 11, (1, 3))[0]
        assert float(one.joint.sum()) + one.constant == pytest.approx(float(expected[11]), abs=1e-4)


def test_patches_lie_where_the_token_map_says() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    coder = coder_at(subject, "language.L3")
    one = direct_attribution(subject, batch, coder, "language.L3", 1, (1, -1))[0]
    grids = one.sources.on_patches(one.by_source)
    assert list(grids) == [(1, 0, 0)]
    tokens = batch.tokens["language"]
    grid = grids[1, 0, 0]
    assert grid.shape == (6, 6) and not bool(grid.isnan().any())
    for number, flat in enumerate(one.sources.index.tolist()):
        row, column = int(tokens.row[flat]), int(tokens.column[flat])
        if row >= 0:
            assert float(grid[row, column]) == float(one.by_source[number])
    frame = one.sources.frame(one.by_source)
    image = frame[frame.role == "image"].value.sum()
    assert image == pytest.approx(float(grid.sum()))
    assert frame.value.sum() == pytest.approx(float(one.joint.sum()))
    assert image != pytest.approx(frame.value.sum())


def test_patches_that_were_not_read_are_nan() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    coder = coder_at(subject, "language.L0")
    tokens = batch.tokens["language"]
    inside = int((tokens.row[: int(tokens.starts[1])] == 2).nonzero()[0])
    one = direct_attribution(subject, batch, coder, "language.L0", 1, (0, inside))[0]
    sources = one.sources
    seen = type(sources)(sources.tower, sources.index[: inside + 1], sources.tokens)
    grid = seen.on_patches(one.by_source[: inside + 1])[0, 0, 0]
    assert grid.shape == (6, 6)
    assert int((~grid.isnan()).sum()) == 2 * 6 + 1


def test_edits_of_patterns_are_what_is_attributed_and_edits_of_z_are_refused() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_at(subject, "language.L1")
    with edit(subject, knock_out("language.L1", queries=[6], keys=[4])):
        one = direct_attribution(subject, batch, coder, "language.L1", 0, (1, 6))[0]
        expected = pre_at(subject, batch, coder, "language.L1", (1, 6))[0]
    assert float(one.by_source[4]) == 0
    assert one.pre_activation == pytest.approx(float(expected), abs=1e-4)
    with (
        edit(subject, scale("language.L1H2", 3.0)),
        pytest.raises(TapError, match="z of language.L1 must be what its pattern and values give"),
    ):
        direct_attribution(subject, batch, coder, "language.L1", 0, (1, 6))


def test_sources_of_cross_attention_are_the_encoders_words_or_unknown() -> None:
    subject, batch = subject_of("t5"), batch_of("t5")
    coder = coder_at(subject, "cross.L0")
    one = direct_attribution(subject, batch, coder, "cross.L0", 3, (1, 6))[0]
    assert (one.sources.tower, one.sources.index.tolist()) == ("encoder", [5, 6, 7, 8, 9])
    assert one.destination == 13
    calls: list[Any] = []
    with listen(subject, batch, calls.append, [Site("cross", 0)]):
        subject.forward(batch)
    place = replace(subject.layout.site(Site("cross", 0)), key_tower="")
    # The decoder's own words would be a plausible, wrong answer where lengths agree.
    assert key_positions(calls[0], 1, place)[1].tolist() == [-1] * 5


def test_several_destinations_come_in_the_order_given() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = coder_at(subject, "language.L1")
    found = direct_attribution(subject, batch, coder, "language.L1", [3, 1], [(1, 2), (0, -1)])
    assert [(one.destination, one.latent) for one in found] == [(9, 3), (9, 1), (6, 3), (6, 1)]
    assert all(one.site == Site("language", 1) for one in found)
    alone = direct_attribution(subject, batch, coder, "language.L1", 1, (0, 6))[0]
    assert torch.equal(alone.joint, found[3].joint)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"latents": 23}, "A latent must be between 0 and 22, got 23"),
        ({"site": "language.L7"}, "must be an attention layer of .* got 'language.L7'"),
        ({"destinations": (2, 0)}, "row of a destination must be between 0 and 1, got 2"),
        ({"destinations": (0, 7)}, "position of a destination must be between 0 and 6, got 7"),
        ({"destinations": (0, 1)}, "must not be padding, position 1 of row 0 is"),
        ({"coder": drawn_coder(10)}, "as wide as the heads of language.L1 side by side .3 x 4"),
    ],
)
def test_what_cannot_be_attributed_is_refused(change: dict[str, Any], sentence: str) -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    given = {"coder": coder_at(subject, "language.L1"), "site": "language.L1"}
    given |= {"latents": 0, "destinations": (1, 1)} | change
    with pytest.raises(ValueError, match=sentence):
        direct_attribution(subject, batch, **given)


class Squared(TopK):
    """A coder that reads its input in a way of its own."""

    def pre_activations(self, x: Tensor) -> Tensor:
        return super().pre_activations(x * x)


def test_a_coder_that_is_not_affine_is_refused() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = coder_at(subject, "language.L1", kind=Squared, k=3)
    with pytest.raises(ValueError, match="Squared gives"):
        direct_attribution(subject, batch, coder, "language.L1", 0, (1, 1))


def test_nothing_is_left_behind_and_inputs_stay_as_they_were() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    before = {name: value.clone() for name, value in batch.tensors.items()}
    coder = coder_at(subject, "language.L0")
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())
    found: list[DirectAttribution] = direct_attribution(
        subject, batch, coder, "language.L0", 0, (1, 1)
    )
    with pytest.raises(ValueError):
        direct_attribution(subject, batch, coder, "language.L0", 99, (1, 1))
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())
    assert hooks == after and len(found) == 1
    assert all(torch.equal(before[name], batch.tensors[name]) for name in before)


def test_numbers_of_torch_and_numpy_are_whole_numbers_too() -> None:
    import numpy as np

    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = drawn_coder(60)
    given: tuple[Any, ...] = (subject, batch, coder, "language.L1")
    (expected,) = direct_attribution(*given, 3, (1, 4))
    (found,) = direct_attribution(*given, torch.tensor(3), (np.int64(1), torch.tensor(4)))
    assert torch.equal(found.joint, expected.joint)
    pairs = [(np.int64(1), 4), [0, 5]]
    assert len(direct_attribution(*given, np.array([3, 4]), pairs)) == 4  # type: ignore[arg-type]
