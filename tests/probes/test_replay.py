"""Replays against whole forwards with plain hooks on the output projections, family by family."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.operations import tensors_in
from probes.replay import Changes, RecordedForward, ReplayError, record
from probes.subject import Subject
from tests import tiny_models as tiny
from tests.parity.families import FAMILIES
from tests.parity.family import Family
from tests.parity.measure import subject_of
from tests.probes.test_tap import IDS, LEFT

RIGHT = LEFT.flip(1)
PIXELS = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
WITH_IMAGE = torch.cat([torch.tensor([[1, 5]] * 2), torch.full((2, 16), 4), IDS[:, 2:]], dim=1)
LLAVA = {"input_ids": WITH_IMAGE, "pixel_values": PIXELS}
T5 = {"input_ids": IDS, "attention_mask": RIGHT, "decoder_input_ids": IDS[:, :5]}

MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], dict[str, str]]] = {
    "gpt2": (
        tiny.gpt2,
        {"input_ids": IDS, "attention_mask": LEFT},
        {"language": "transformer.h.{}.attn.c_proj"},
    ),
    "gpt2 eager": (
        lambda: tiny.gpt2(attn_implementation="eager"),
        {"input_ids": IDS, "attention_mask": RIGHT},
        {"language": "transformer.h.{}.attn.c_proj"},
    ),
    "llama": (
        tiny.llama,
        {"input_ids": IDS, "attention_mask": LEFT},
        {"language": "model.layers.{}.self_attn.o_proj"},
    ),
    "llama in bfloat16": (
        lambda: tiny.llama().bfloat16(),
        {"input_ids": IDS, "attention_mask": RIGHT},
        {"language": "model.layers.{}.self_attn.o_proj"},
    ),
    "vit": (
        tiny.vit,
        {"pixel_values": PIXELS},
        {"vision": "vit.layers.{}.attention.o_proj"},
    ),
    "clip": (
        tiny.clip,
        {"input_ids": IDS, "pixel_values": PIXELS},
        {
            "vision": "vision_model.encoder.layers.{}.self_attn.out_proj",
            "language": "text_model.encoder.layers.{}.self_attn.out_proj",
        },
    ),
    "llava": (
        tiny.llava,
        LLAVA,
        {
            "vision": "model.vision_tower.encoder.layers.{}.self_attn.out_proj",
            "language": "model.language_model.layers.{}.self_attn.o_proj",
        },
    ),
    "t5": (
        tiny.t5,
        T5,
        {
            "encoder": "encoder.block.{}.layer.0.SelfAttention.o",
            "decoder": "decoder.block.{}.layer.0.SelfAttention.o",
            "cross": "decoder.block.{}.layer.1.EncDecAttention.o",
        },
    ),
}
DEFAULT_FAMILIES = (
    *("bert", "gpt_neox", "gemma2", "mixtral", "dinov2_with_registers", "albert", "ctrl", "bart"),
    *("qwen2_vl", "ibert", "swin", "squeezebert", "diffllama"),
)
"""Two post-norms and a soft cap, parallel residual, experts, layer scale, one block for all
layers, an embedding that is changed in place, a list that is changed, windows, ..."""


@contextmanager
def hooked(subject: Subject, paths: dict[str, str], changes: Changes) -> Iterator[None]:
    """Plain hooks of the test's own on the output projections."""
    handles = []
    for site, (heads, values) in changes.items():

        def hook(_: nn.Module, args: tuple[Tensor, ...], heads=heads, values=values) -> Any:
            width = values.shape[-1]
            z = args[0].clone()
            for index, head in enumerate(heads):
                part = z[..., head * width : (head + 1) * width]
                part.copy_(values[:, :, index].reshape(part.shape))
            return (z, *args[1:])

        module = subject.model.get_submodule(paths[site.tower].format(site.layer))
        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drawn(z: Tensor, heads: list[int], seed: int = 3) -> tuple[list[int], Tensor]:
    shape = (*z.shape[:2], len(heads), z.shape[3])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return heads, values.to(z.dtype)


def assert_equal(made: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Bitwise, unless a tolerance is given."""
    both = list(tensors_in(made)), list(tensors_in(expected))
    assert len(both[0]) == len(both[1]) > 0
    for one, other in zip(*both, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)


def rounding(recorded: RecordedForward) -> float:
    """Products with fewer rows may be rounded otherwise."""
    return 1e-6 if recorded.fewer_rows is True else 0.0


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[Subject, Any, dict[str, str]]:
    build, tensors, paths = MODELS[request.param]
    subject = Subject(build())
    return subject, subject.prepare(**tensors), paths


def test_changed_heads_of_every_layer_give_what_a_whole_forward_gives(case: Any) -> None:
    subject, batch, paths = case
    recorded = record(subject, batch)
    assert_equal(recorded.output, subject.forward(batch))
    assert set(recorded.z) == {layout.site for layout in subject.layout.sites}
    for site, z in recorded.z.items():
        changes = {site: drawn(z, [2, 0] if z.shape[2] > 2 else [1])}
        assert recorded.restarts(site) is True
        with hooked(subject, paths, changes):
            expected = subject.forward(batch)
        assert_equal(recorded.run(changes), expected, rounding(recorded))
        moved = zip(tensors_in(expected), tensors_in(recorded.output), strict=True)
        assert any(not torch.equal(one, other) for one, other in moved)
        intact = recorded.run({site: (range(z.shape[2]), z)})
        assert_equal(intact, recorded.output, rounding(recorded))


def test_changes_of_several_layers_and_towers_at_once(case: Any) -> None:
    subject, batch, paths = case
    recorded = record(subject, batch)
    changes = {site: drawn(z, [1]) for site, z in reversed(recorded.z.items())}
    for some in (changes, dict(list(changes.items())[:2])):
        with hooked(subject, paths, some):
            expected = subject.forward(batch)
        assert_equal(recorded.run(some), expected, rounding(recorded))
        assert_equal(recorded.run_whole(some), expected)


def test_the_block_of_a_changed_layer(case: Any) -> None:
    subject, batch, paths = case
    recorded = record(subject, batch)
    for site, z in recorded.z.items():
        block = subject.model.get_submodule(subject.layout.anatomy.blocks[site].path)
        seen: list[Tensor] = []
        handle = block.register_forward_hook(lambda *call, seen=seen: seen.append(_first(call[2])))
        heads, values = drawn(z, [1])
        try:
            with hooked(subject, paths, {site: (heads, values)}):
                subject.forward(batch)
        finally:
            handle.remove()
        assert_equal(recorded.run_block(site, heads, values), seen[0])
        assert_equal(recorded.run_block(site, range(z.shape[2]), z), recorded.block_output(site))


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f.name, marks=[] if f.name in DEFAULT_FAMILIES else [pytest.mark.slow])
        for f in FAMILIES
        if f.towers
    ],
)
def test_every_layer_of_every_family_can_be_started_from(family: Family) -> None:
    attention = "eager" if family.name == "gemma2" else None
    subject, batch = subject_of(family.build(attention), family.inputs(), family.name)
    recorded = record(subject, batch)
    for site, z in recorded.z.items():
        changes = {site: drawn(z, [z.shape[2] - 1])}
        assert recorded.restarts(site) is True
        made, whole = recorded.run(changes), recorded.run_whole(changes)
        for one, other in zip(tensors_in(made), tensors_in(whole), strict=True):
            assert torch.allclose(one.float(), other.float(), atol=1e-5, rtol=1e-6, equal_nan=True)
        found = subject.layout.anatomy.projections.get(site)
        shared = sum(s.path == subject.layout.site(site).path for s in subject.layout.sites) > 1
        if found is None or not found.path or shared or recorded.player.dice is not None:
            continue
        with hooked(subject, {site.tower: found.path}, changes):
            expected = subject.forward(batch)
        assert_equal(whole, expected)


def test_heads_without_a_projection_module_are_changed_in_a_block_that_runs() -> None:
    """Zero z of a head is a zero column of the output matrix, whoever multiplies with it."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(12, 3, 14, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    subject = Subject(model)
    batch = subject.prepare(src=torch.randn(2, 5, 12))
    recorded = record(subject, batch)
    for site in recorded.z:
        assert recorded.restarts(site) is True
        made = recorded.run({site: ([1], torch.zeros(1))})
        weight = model.layers[site.layer].self_attn.out_proj.weight.data
        before = weight.clone()
        weight[:, 4:8] = 0
        expected = subject.forward(batch)
        weight.copy_(before)
        assert torch.allclose(made, expected, atol=1e-6)
        assert not torch.allclose(made, recorded.output, atol=1e-3)


class Ran:
    """How often modules ran, counted in the code that they run."""

    def __init__(self, model: nn.Module, *paths: str) -> None:
        self.times = dict.fromkeys(paths, 0)
        for path in paths:
            module = model.get_submodule(path)
            module.register_forward_pre_hook(lambda *_, path=path: self._count(path))

    def _count(self, path: str) -> None:
        self.times[path] += 1


def test_what_ended_before_the_change_does_not_run() -> None:
    model = tiny.llama()
    subject = Subject(model)
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    recorded = record(subject, batch)
    site = Site("language", 1)
    recorded.run({site: ([3], torch.zeros(1))})  # what is found out once has been found out
    layers = [f"model.layers.{i}.{part}" for i in range(3) for part in ("mlp", "self_attn.q_proj")]
    ran = Ran(model, *layers, "lm_head")
    recorded.run({site: ([3], torch.zeros(1))})
    assert list(ran.times.values()) == [0, 0, 1, 0, 1, 1, 1]
    recorded.run_block(site, [3], torch.zeros(1))
    assert list(ran.times.values()) == [0, 0, 2, 0, 1, 1, 1]


def test_positions_are_those_of_the_whole_logits(case: Any) -> None:
    subject, batch, paths = case
    positions = torch.tensor([1, 4])
    recorded = record(subject, batch, positions=positions)
    if "logits_to_keep" not in subject.arguments.names:
        assert recorded.positions is None
        assert_equal(recorded.output, subject.forward(batch))
        return
    assert recorded.positions is not None and recorded.positions.tolist() == [1, 4]
    full = subject.forward(batch).logits[:, positions]
    assert torch.allclose(recorded.output.logits, full, atol=1e-6)
    for site, z in recorded.z.items():
        changes = {site: drawn(z, [1])}
        with hooked(subject, paths, changes):
            expected = subject.forward(batch).logits[:, positions]
        made = recorded.run(changes).logits
        assert torch.allclose(made, expected, atol=1e-6 if made.element_size() == 4 else 2e-2)


def test_positions_are_ignored_by_a_model_that_can_only_count_them() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = tiny.gpt2(), None

        def forward(self, input_ids: Tensor, logits_to_keep: Any = 0) -> Tensor:
            logits = self.inner(input_ids=input_ids).logits
            return logits if isinstance(logits_to_keep, int) else logits[:, -len(logits_to_keep) :]

    subject = Subject(Counts().eval())
    batch = subject.prepare(input_ids=IDS)
    recorded = record(subject, batch, positions=torch.tensor([1, 4]))
    assert recorded.positions is None
    assert recorded.output.shape == (2, 7, 31)


def test_a_listener_hears_every_call_of_the_intact_model_once() -> None:
    subject = Subject(tiny.llama())
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    heard: dict[Site, Tensor] = {}

    def listen(call: AttentionCall) -> None:
        assert call.site not in heard
        heard[call.site] = call.z.clone()

    recorded = record(subject, batch, on_call=listen)
    assert set(heard) == set(recorded.z)
    for site, z in recorded.z.items():
        assert torch.equal(heard[site].transpose(1, 2), z)


def test_only_what_is_asked_for_is_kept() -> None:
    subject = Subject(tiny.llama(attn_implementation="eager"))
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    recorded = record(subject, batch, sites=[Site("language", 1)])
    assert list(recorded.z) == [Site("language", 1)]
    kept = [call.path for call in recorded.player.tree.calls if call.has_output]
    assert kept == [
        "model.embed_tokens",
        "model.rotary_emb",
        *(f"model.layers.{i}" for i in (0, 1)),
    ]
    gc.collect()
    shapes = [t.shape for t in gc.get_objects() if isinstance(t, Tensor) and not t.is_meta]
    assert torch.Size([2, 6, 7, 7]) not in shapes
    with pytest.raises(ReplayError, match=r"language\.L0 must have been recorded"):
        recorded.run({Site("language", 0): ([0], torch.zeros(1))})


def test_values_and_heads_that_do_not_fit_are_refused() -> None:
    subject = Subject(tiny.llama())
    recorded = record(subject, subject.prepare(input_ids=IDS))
    site = Site("language", 1)
    with pytest.raises(ReplayError, match=r"different numbers from 0 to 5, got \[6\]"):
        recorded.run({site: ([6], torch.zeros(1))})
    with pytest.raises(ReplayError, match="different numbers"):
        recorded.run({site: ([1, 1], torch.zeros(1))})
    with pytest.raises(ReplayError, match=r"must have shape \[2, 7, 1, 10\]"):
        recorded.run({site: ([1], torch.zeros(3))})


def test_values_may_be_broadcast_and_heads_come_in_any_order() -> None:
    subject = Subject(tiny.llama())
    recorded = record(subject, subject.prepare(input_ids=IDS))
    site = Site("language", 0)
    values = torch.arange(20.0).reshape(2, 10)
    made = recorded.run({site: ([4, 1], values)})
    full = values.flip(0).expand(2, 7, 2, 10)
    assert_equal(made, recorded.run_whole({site: ([1, 4], full)}))
