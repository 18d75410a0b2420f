"""Edits of scores, patterns and z, each against the same change made by hand."""

import re

import pytest
import torch
from torch import Tensor

from probes import edits
from probes.capture import capture
from probes.edits.apply import available_edits, edit
from probes.subject import Subject
from probes.tap import TapError
from tests import tiny_models as tiny
from tests.probes.test_tap import IDS, LEFT


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(
        tiny.sharp(tiny.llama(attn_implementation=request.param)), tiny.tokenizer("left")
    )


def logits(subject: Subject, *changes: object) -> Tensor:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    if not changes:
        return subject.forward(batch).logits[:, 3:]
    with edit(subject, *changes):  # type: ignore[arg-type]
        return subject.forward(batch).logits[:, 3:]


def by_hand(subject: Subject, layer: int, change: object) -> Tensor:
    """The logits with a plain hook of the test's own on the output projection."""
    module = subject.model.model.layers[layer].self_attn.o_proj  # type: ignore[union-attr]

    def hook(_: object, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].unflatten(-1, (6, 10)).clone()
        change(z)  # type: ignore[operator]
        return (z.flatten(-2),)

    handle = module.register_forward_pre_hook(hook)
    try:
        return logits(subject)
    finally:
        handle.remove()


def test_scale_and_zero(subject: Subject) -> None:
    expected = by_hand(subject, 1, lambda z: z[:, :, 2].mul_(2.5))
    assert torch.allclose(logits(subject, edits.scale("L1H2", 2.5)), expected, atol=1e-5)
    both = by_hand(subject, 0, lambda z: (z[:, :, 1].zero_(), z[:, :, 5].zero_()))
    assert torch.allclose(logits(subject, edits.zero(["L0H1", "L0H5"])), both, atol=1e-5)
    assert not torch.allclose(both, logits(subject), atol=1e-3)


def test_scale_by_one_changes_nothing_and_says_so(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, edits.scale("*", 1.0)) as (report,):
        subject.forward(batch)
    assert (report.fired, report.touched) == (3, 0)


def test_what_an_edit_touched_is_counted(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, edits.zero(["L1H2", "L1H3"])) as (report,):
        subject.forward(batch)
    assert (report.fired, report.touched) == (1, 2 * 7 * 2)
    assert str(report) == "scale(0) on 2 heads: fired 1, touched 28"


def test_given_z_and_mean(subject: Subject) -> None:
    vector = torch.arange(10.0)
    expected = by_hand(subject, 2, lambda z: z[:, :, 4].copy_(vector.expand(2, 7, 10)))
    made = logits(subject, edits.mean("L2H4", {"language.L2H4": vector}))
    assert torch.allclose(made, expected, atol=1e-4)
    other = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(1))
    expected = by_hand(subject, 2, lambda z: z[:, :, 4].copy_(other))
    made = logits(subject, edits.replace("L2H4", {"language.L2H4": other}))
    assert torch.allclose(made, expected, atol=1e-5)
    site = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    expected = by_hand(subject, 2, lambda z: z[:, :, 4].copy_(site[4].expand(2, 7, 10)))
    assert torch.allclose(
        logits(subject, edits.mean("L2H4", {"language.L2": site})), expected, atol=1e-5
    )


def test_replacing_z_by_itself_changes_nothing(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    z = capture(subject, batch, z="L1").z("L1")
    made = logits(subject, edits.replace("L1", {"language.L1": z}))
    assert torch.allclose(made, logits(subject), atol=1e-6)


def test_given_z_of_a_wrong_shape_or_head_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match=re.escape("must have shape [10] or [2, 7, 10]")):
        logits(subject, edits.replace("L2H4", {"language.L2H4": torch.zeros(3)}))
    with pytest.raises(ValueError, match=re.escape("must have values for language.L2H4")):
        logits(subject, edits.mean("L2H4", {"language.L2H3": torch.zeros(10)}))


def test_pattern_edit_is_used_by_the_model(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    clean = capture(subject, batch, patterns="L1")
    uniform = edits.edit_pattern("L1H3", lambda p, _: (p > 0).float() / (p > 0).sum(-1, True))
    with edit(subject, uniform):
        seen = capture(subject, batch, patterns="L1", z="L1")
    pattern, before = seen.pattern("L1"), clean.pattern("L1")
    assert isinstance(pattern, Tensor) and isinstance(before, Tensor)
    assert torch.allclose(pattern[1, 3, 6], torch.full((7,), 1 / 7))
    assert torch.allclose(pattern[:, 2], before[:, 2], atol=1e-6)
    assert not torch.allclose(logits(subject, uniform), logits(subject), atol=1e-3)


def test_knock_out_by_position_renormalises_the_rest(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    before = capture(subject, batch, patterns="L0H1").pattern("L0H1")
    with edit(subject, edits.knock_out("L0H1", queries=[5, 6], keys=[2, 3])):
        after = capture(subject, batch, patterns="L0H1").pattern("L0H1")
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    expected = before.clone()
    expected[:, 5:7, 2:4] = 0
    expected = expected / expected.sum(-1, keepdim=True)
    assert torch.allclose(after, expected, atol=1e-5)


def test_knock_out_of_everything_a_query_reads_gives_zero(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, edits.knock_out("L0H1", queries=[0], keys=[0])):
        seen = capture(subject, batch, patterns="L0H1", z="L0H1")
    pattern = seen.pattern("L0H1")
    assert isinstance(pattern, Tensor)
    assert not pattern[:, 0].any()
    assert not seen.z("L0H1")[:, 0].any()


def test_positions_are_those_of_the_sequence_where_a_window_keeps_the_last_keys() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    settings = {**tiny.llama_config().to_dict(), "sliding_window": 4, "eos_token_id": None}
    model = MistralForCausalLM(MistralConfig(**settings)).eval()
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    place = IDS.shape[1]  # of the first generated token
    with edit(subject, edits.knock_out("L0H1", keys=[place])) as (report,):
        seen = capture(subject, batch, patterns="L0H1", generate=4)
    assert report.touched
    for step in (1, 2, 3):
        pattern = seen.pattern("L0H1", step)
        assert isinstance(pattern, Tensor)
        assert pattern.shape[-1] == 4
        gone = (pattern == 0).nonzero()[:, -1].unique().tolist()
        assert gone == [4 - step]


def test_knock_out_by_role_while_generating() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    image = tiny.picture() if hasattr(tiny, "picture") else None
    from PIL import Image

    image = image or Image.new("RGB", (20, 20), (200, 30, 60))
    batch = subject.prepare(text="<image> describe the image", images=[image])
    blind = edits.knock_out("language.*", queries=["text", "generated"], keys="image")
    with edit(subject, blind) as (report,):
        seen = capture(subject, batch, patterns="language.*", generate=3)
    roles = seen.tokens["language"]
    image_keys = roles.has_role("image")[: len(roles)]
    text = (roles.has_role("text"))[: int(seen.tokens["language"].lengths[0])]
    prompt = seen.pattern("language.L1")
    later = seen.pattern("language.L2H0", step=2)
    assert isinstance(prompt, Tensor) and isinstance(later, Tensor)
    n = prompt.shape[-1]
    assert not prompt[0][:, text[:n]][..., image_keys[:n]].any()
    assert not later[0, 0, image_keys[: later.shape[-1]]].any()
    assert report.touched > 0


def test_an_unknown_role_edit_or_head_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="A role must be one of bos, system"):
        logits(subject, edits.knock_out("L0H1", queries="words"))
    with pytest.raises(ValueError, match="An edit must be one of"):
        logits(subject, "boost")
    with pytest.raises(ValueError, match="has heads 0 to 5 in layer 0"):
        logits(subject, edits.zero("language.L0H6"))


def test_an_edit_that_never_fires_is_an_error(subject: Subject) -> None:
    never = pytest.raises(TapError, match=r"Edit scale\(0\) on language.L0H1 must fire")
    with never, edit(subject, edits.zero("L0H1")):
        pass


def test_edits_by_name(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    with edit(subject, "scale", heads="L0H1", factor=3) as (report,):
        subject.forward(batch)
    assert report.label == "scale(3)"
    assert {"scale", "zero", "mean", "replace", "knock_out"} <= set(available_edits())


def test_an_edit_must_keep_the_shape(subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"must return pattern of shape \(2, 1, 7, 7\)"):
        logits(subject, edits.edit_pattern("L0H1", lambda p, _: p[..., 1:]))


def test_scores_of_mixed_heads_are_refused() -> None:
    from tests.probes.test_observe import Talking

    torch.manual_seed(0)
    subject = Subject(Talking().eval(), name="talking")
    batch = subject.prepare(x=torch.randn(2, 5, 6))
    refused = pytest.raises(ValueError, match="whose heads are mixed after the softmax")
    with refused, edit(subject, edits.knock_out("*", keys=[1])):
        subject.forward(batch)
    with edit(subject, edits.edit_pattern("*", lambda p, _: p * 0)) as (report,):
        subject.forward(batch)
    assert report.touched == 2 * 5 * 2
