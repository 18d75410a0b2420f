"""Gradients at head outputs: against autograd through a mask, and against finite differences."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from probes import edits
from probes.attention_call import AttentionCall
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.gradients import ZGradients, gradients_of, z_gradients
from probes.heads import Site
from probes.subject import Subject
from probes.tap import TapError
from probes.z_forward import differentiating, z_forward
from tests import tiny_models as tiny
from tests.parity.families import FAMILIES
from tests.parity.measure import subject_of
from tests.probes.test_tap import IDS, LEFT, hooks

RIGHT = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])


def last_logit(output: Any) -> Tensor:
    """Token 7's log-probability at the end of each row, of left-padded rows."""
    return torch.log_softmax(output.logits[:, -1].float(), -1)[:, 7]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(
        tiny.sharp(tiny.llama(attn_implementation=request.param)), tiny.tokenizer("left")
    )


def masked(subject: Subject, batch: Any, head: str, objective: Callable[[Any], Tensor]) -> Tensor:
    """``d objective / d xi`` per example by autograd through a scale of one head's z."""
    gain = torch.ones(batch.size, 1, 1, 1, requires_grad=True)

    def scaled(z: Tensor, _: EditPlace) -> Tensor:
        return z * gain

    with subject.evaluating(), edit(subject, edits.edit_z(head, scaled)):
        objective(subject.call(batch)).sum().backward()
    subject.model.zero_grad()
    assert gain.grad is not None
    return gain.grad.flatten()


def by_mask(found: ZGradients, site: Site) -> Tensor:
    """Float ``[batch head]``: sum of z times its gradient."""
    return (found.z[site].float() * found.gradient[site]).sum((1, 3))


@pytest.mark.parametrize("padding", [LEFT, RIGHT])
def test_mask_gradient_is_that_of_autograd_through_a_scale(
    subject: Subject, padding: Tensor
) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=padding)
    last = padding.cumsum(1).argmax(1)

    def objective(output: Any) -> Tensor:
        return output.logits[torch.arange(2), last].log_softmax(-1)[:, 7]

    found = z_gradients(subject, batch, objective)
    for layer, head in ((0, 3), (1, 0), (1, 5), (2, 2)):
        expected = masked(subject, batch, f"L{layer}H{head}", objective)
        score = by_mask(found, Site("language", layer))[:, head]
        assert torch.allclose(score, expected, rtol=1e-4, atol=1e-6)
    assert float(by_mask(found, Site("language", 0)).abs().amin()) > 1e-6


def test_gradient_is_that_of_finite_differences() -> None:
    # GPT-2 computes in the dtype of its weights throughout; Llama's norms would round.
    subject = Subject(tiny.sharp(tiny.gpt2()).double(), tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)

    def objective(output: Any) -> Tensor:
        return output.logits[:, -1].log_softmax(-1)[:, 7]

    found = z_gradients(subject, batch, objective)
    step = 1e-5
    for site, place in ((Site("language", 0), (0, 5, 1, 3)), (Site("language", 1), (1, 6, 2, 1))):
        shifted = []
        for sign in (step, -step):
            z = found.z[site].clone()
            z[place] += sign
            with edit(subject, edits.replace(str(site), {str(site): z})):
                shifted.append(objective(subject.forward(batch)).sum())
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert abs(float(slope)) > 1e-6
        assert torch.isclose(found.gradient[site][place].double(), slope, rtol=1e-4)


def test_frozen_weights_flags_and_hooks_are_left_alone(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    expected = z_gradients(subject, batch, last_logit)
    before = hooks(subject.model)
    subject.model.requires_grad_(False).train()
    try:
        with torch.no_grad():
            frozen = z_gradients(subject, batch, last_logit)
        with torch.inference_mode():
            inside = z_gradients(subject, batch, last_logit)
        assert all(module.training for module in subject.model.modules())
        for site, gradient in expected.gradient.items():
            assert torch.allclose(gradient, frozen.gradient[site], atol=1e-7)
            assert torch.allclose(gradient, inside.gradient[site], atol=1e-7)
    finally:
        subject.model.requires_grad_(True).eval()
    assert hooks(subject.model) == before
    assert all(p.grad is None for p in subject.model.parameters())


def test_after_a_failure_everything_is_as_before(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    before = hooks(subject.model)

    def broken(_: Any) -> Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        z_gradients(subject, batch, broken, calls=True)
    assert hooks(subject.model) == before
    assert all(p.grad is None for p in subject.model.parameters())


def test_examples_do_not_mix(subject: Subject) -> None:
    both = z_gradients(subject, subject.prepare(input_ids=IDS, attention_mask=LEFT), last_logit)
    alone = z_gradients(subject, subject.prepare(input_ids=IDS[:1, 3:]), last_logit)
    for site, gradient in alone.gradient.items():
        assert torch.allclose(both.gradient[site][:1, 3:], gradient, atol=1e-6)
        assert not both.gradient[site][0, :3].any()


def test_calls_come_with_what_the_pattern_needs(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    plain = z_gradients(subject, batch, last_logit)
    found = z_gradients(subject, batch, last_logit, calls=True)
    for site, gradient in plain.gradient.items():
        assert torch.allclose(found.gradient[site], gradient, atol=1e-7)
        ((call, part),) = list(found.by_call(site))
        assert isinstance(call, AttentionCall)
        assert not call.value.requires_grad and not call.z.requires_grad
        assert torch.equal(call.z.transpose(1, 2), found.z[site])
        assert torch.equal(part.transpose(1, 2), gradient) or torch.allclose(
            part.transpose(1, 2), gradient, atol=1e-7
        )
        assert float(call.worst_mismatch()) < 1e-5


def test_gradient_at_the_pattern_is_gradient_times_values() -> None:
    """Against autograd through an eager model's own attention probabilities."""
    model = tiny.sharp(tiny.llama(attn_implementation="eager"))
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    output = model(**batch.tensors, output_attentions=True)
    for probabilities in output.attentions:
        probabilities.retain_grad()
    last_logit(output).sum().backward()
    found = z_gradients(subject, batch, last_logit, calls=True)
    for site, ((call, gradient),) in ((s, list(found.by_call(s))) for s in found.z):
        value = call.value.repeat_interleave(call.heads // call.kv_heads, 1)
        made = gradient @ value.transpose(-1, -2)
        expected = output.attentions[site.layer].grad
        assert torch.allclose(made.tril(), expected.tril(), atol=1e-6)
    model.zero_grad()


def test_bfloat16_gives_float32() -> None:
    model = tiny.sharp(tiny.llama())
    exact = Subject(copy.deepcopy(model), tiny.tokenizer("left"))
    half = Subject(model.to(torch.bfloat16), tiny.tokenizer("left"))
    batch = exact.prepare(input_ids=IDS)
    found, reference = z_gradients(half, batch, last_logit), z_gradients(exact, batch, last_logit)
    for site, gradient in found.gradient.items():
        assert gradient.dtype == torch.float32 and found.z[site].dtype == torch.bfloat16
        same = torch.nn.functional.cosine_similarity(
            gradient.flatten(), reference.gradient[site].flatten(), dim=0
        )
        assert float(same) > 0.9


def test_vision_and_language_at_once() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    picture = Image.effect_noise((20, 20), 90).convert("RGB")
    batch = subject.prepare(text="<image> describe the image", images=[picture])
    found = z_gradients(subject, batch, last_logit, calls=True)
    assert {site.tower for site in found.gradient} == {"vision", "language"}
    for site in (Site("vision", 0), Site("vision", 1), Site("language", 1)):
        for head in (0, 2):
            expected = masked(subject, batch, f"{site}H{head}", last_logit)
            score = by_mask(found, site)[:, head]
            assert torch.allclose(score, expected, rtol=1e-3, atol=1e-7)
            assert float(expected.abs().max()) > 1e-9


def test_a_layer_that_nothing_reads_has_no_gradient() -> None:
    model = tiny.llava()
    model.config.vision_feature_layer = -2
    subject = Subject(model, tiny.llava_processor())
    picture = Image.effect_noise((20, 20), 90).convert("RGB")
    batch = subject.prepare(text="<image> describe the image", images=[picture])
    found = z_gradients(subject, batch, last_logit)
    assert found.unused == {Site("vision", 1)}
    assert not found.gradient[Site("vision", 1)].any()
    assert found.gradient[Site("vision", 0)].any()


class Functional(nn.Module):
    """Attention whose output projection is used without calling its module."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.leave = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        mixed, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        return self.leave((hidden + mixed).mean(1))


@pytest.mark.parametrize("calls", [False, True])
def test_a_projection_without_a_hook(calls: bool) -> None:
    torch.manual_seed(3)
    model = Functional().train()
    subject = Subject(model, name="functional")
    batch = subject.prepare(x=torch.randn(2, 11, 5))
    found = z_gradients(subject, batch, lambda output: output[:, 4], calls=calls)
    (site,) = found.gradient
    assert found.gradient[site].shape == (2, 11, 3, 4)
    for head in range(3):
        expected = masked(subject, batch, f"L0H{head}", lambda output: output[:, 4])
        assert torch.allclose(by_mask(found, site)[:, head], expected, rtol=1e-4, atol=1e-7)


def test_other_edits_stay_in_force(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, edits.zero("L1H2")):
        found = z_gradients(subject, batch, last_logit)
        expected = masked(subject, batch, "L0H1", last_logit)
    assert not found.z[Site("language", 1)][:, :, 2].any()
    assert torch.allclose(by_mask(found, Site("language", 0))[:, 1], expected, rtol=1e-4, atol=1e-6)


def test_gradients_flow_through_an_edit_of_the_pattern(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, edits.knock_out("L1H2", queries=[5, 6], keys=[1])):
        found = z_gradients(subject, batch, last_logit)
        expected = masked(subject, batch, "L0H1", last_logit)
    assert torch.allclose(by_mask(found, Site("language", 0))[:, 1], expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_differentiated_is_refused(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with pytest.raises(ValueError, match=re.escape("one axis), got [2, 7]. Sum it over")):
        z_gradients(subject, batch, lambda output: output.logits[:, :, 3])
    with pytest.raises(TapError, match="by a path that gradients can go"):
        z_gradients(subject, batch, lambda output: output.logits[:, -1, 3].detach())
    with pytest.raises(TapError, match="by a path that gradients can go"):
        weight = subject.model.get_input_embeddings().weight
        z_gradients(subject, batch, lambda _: weight.sum(1)[:2])
    with pytest.raises(TapError, match=r"vision.L0, vision.L1 were not. Add what reaches it"):
        vlm = Subject(tiny.llava(), tiny.llava_processor())
        some = [Site("vision", 0), Site("vision", 1)]
        z_gradients(vlm, vlm.prepare(input_ids=IDS), last_logit, sites=some)


def test_a_layer_that_shows_only_a_part_of_its_calls_is_refused() -> None:
    family = next(f for f in FAMILIES if f.name == "canine")
    subject, batch = subject_of(family.build(), family.inputs(), family.name)

    def objective(output: Any) -> Tensor:
        return output.last_hidden_state[:, 0, 3]

    assert z_gradients(subject, batch, objective).gradient[Site("language", 0)].any()
    with pytest.raises(TapError, match=r"of language.L0 must give out all that its output"):
        z_gradients(subject, batch, objective, calls=True)


def test_checkpointing_in_training_is_refused() -> None:
    model = tiny.llama()
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    model.gradient_checkpointing_enable()
    z_gradients(subject, batch, last_logit)  # in evaluation mode it does nothing
    model.train()
    with pytest.raises(ValueError, match="Gradient checkpointing must be off while gradients"):
        z_gradients(subject, batch, last_logit)


def test_going_around_a_block_equals_a_model_in_which_it_is_constant() -> None:
    model = tiny.sharp(tiny.llama())
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    paths = [f"model.layers.{layer}" for layer in range(3)]
    forward = z_forward(subject, batch, gates=paths)
    assert torch.equal(forward.output.logits, subject.forward(batch).logits)
    assert forward.gates.paths == tuple(paths)
    with differentiating():
        value = last_logit(forward.output)
    plain = gradients_of(forward, value, last=False)
    around = gradients_of(forward, value, without_block=1, last=False)
    again = gradients_of(forward, value)
    frozen = z_gradients_with_constant_block(subject, batch, "model.layers.1")
    for site in forward.z:
        assert torch.equal(plain.gradient[site], again.gradient[site])
    assert not around.gradient[Site("language", 1)].any()
    assert torch.allclose(
        around.gradient[Site("language", 0)], frozen[Site("language", 0)], atol=1e-6
    )
    assert torch.allclose(
        around.gradient[Site("language", 2)], plain.gradient[Site("language", 2)], atol=1e-6
    )
    assert not torch.allclose(
        around.gradient[Site("language", 0)], plain.gradient[Site("language", 0)], atol=1e-4
    )


def z_gradients_with_constant_block(subject: Subject, batch: Any, path: str) -> dict[Site, Tensor]:
    """The block adds what it added, as a constant, to what enters it."""
    handle = subject.model.get_submodule(path).register_forward_hook(
        lambda _, args, output: args[0] + (output - args[0]).detach()
    )
    try:
        return dict(z_gradients(subject, batch, last_logit).gradient)
    finally:
        handle.remove()
