"""The tap: what listeners see, in which order, in which thread, and what it leaves behind."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from probes import edits
from probes.attention_call import AttentionCall
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.heads import Site
from probes.listening import listen
from probes.subject import Subject
from probes.tap import TapError
from tests import tiny_models as tiny

IDS = torch.tensor([[1, 5, 6, 7, 8, 5, 6], [1, 9, 10, 11, 12, 9, 10]])
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])


def eager(model: nn.Module) -> nn.Module:
    config = copy.deepcopy(model.config)
    twin = type(model)._from_config(config, attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llama()), tiny.tokenizer("left"))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_patterns_equal_eager_and_logits_do_not_move(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    plain = subject.forward(batch).logits
    seen = capture(subject, batch, patterns="language.*", z="language.*")
    assert torch.equal(seen.output.logits, plain)
    with torch.no_grad():
        expected = eager(subject.model)(**batch.tensors, output_attentions=True).attentions
    for layer, reference in enumerate(expected):
        pattern = seen.pattern(f"language.L{layer}")
        assert isinstance(pattern, Tensor)
        assert torch.allclose(pattern[1], reference[1], atol=1e-5)
        assert torch.allclose(pattern[0, :, 3:], reference[0, :, 3:], atol=1e-5)
        assert seen.z(f"L{layer}").shape == (2, 7, 6, 10)
    head = seen.pattern("language.L1H4")
    layer_one = seen.pattern(Site("language", 1))
    assert isinstance(head, Tensor) and isinstance(layer_one, Tensor)
    assert torch.equal(head, layer_one[:, 4])


def test_z_through_the_projection_equals_z_at_the_call(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    at_call: dict[Site, Tensor] = {}
    with listen(subject, batch, lambda call: at_call.update({call.site: call.z.clone()})):
        subject.forward(batch)
    by_hook = capture(subject, batch, z="*")
    for site, z in at_call.items():
        assert torch.equal(by_hook.z(site), z.transpose(1, 2))


def test_every_generated_token_is_what_a_full_forward_sees(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    seen = capture(subject, batch, patterns="*", z="*", generate=4)
    whole = seen.output.sequences
    mask = torch.cat([LEFT, torch.ones(2, 4, dtype=torch.long)], 1)
    full = subject.prepare(input_ids=whole, attention_mask=mask)
    expected = capture(subject, full, patterns="*", z="*")
    assert seen.steps == 4
    for step in range(1, 4):
        for layer in range(3):
            row = seen.pattern(f"L{layer}", step=step)
            reference = expected.pattern(f"L{layer}")
            assert isinstance(row, Tensor) and isinstance(reference, Tensor)
            last = 6 + step
            assert torch.allclose(row[:, :, 0], reference[:, :, last, : last + 1], atol=1e-5)
            z = expected.z(f"L{layer}")[:, last]
            assert torch.allclose(seen.z(f"L{layer}", step=step)[:, 0], z, atol=1e-5)
    assert seen.tokens["language"].has_role("generated").sum() == 2 * 4
    with pytest.raises(KeyError, match="at step 7 must have been captured"):
        seen.pattern("L0", step=7)


def test_calls_know_their_positions_while_decoding(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    steps: list[tuple[int, list[int], int]] = []

    def note(call: AttentionCall) -> None:
        if call.site.layer == 0:
            assert call.query_index is not None and call.key_index is not None
            steps.append((call.step, call.query_index[1].tolist(), call.key_index.shape[1]))

    with listen(subject, batch, note):
        subject.generate(batch, max_new_tokens=3)
    rows = 7 + 3
    assert steps == [
        (0, list(range(rows, rows + 7)), 7),
        (1, [rows + 7], 8),
        (2, [rows + 8], 9),
    ]


def test_edits_come_first_whatever_the_order_of_the_blocks(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    zeros: list[bool] = []

    def look(call: AttentionCall) -> None:
        if call.site.layer == 1:
            zeros.append(not call.z[:, 2].any())

    remove = edits.zero("L1H2")
    with edit(subject, remove), listen(subject, batch, look):
        subject.forward(batch)
    with listen(subject, batch, look), edit(subject, remove):
        subject.forward(batch)
    assert zeros == [True, True]
    with edit(subject, remove):
        assert not capture(subject, batch, z="L1").z("L1H2").any()


def test_two_threads_do_not_see_each_other(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    plain = subject.forward(batch).logits
    counts = [0, 0]
    wrong: list[str] = []

    def work(which: int) -> None:
        for _ in range(8):
            with listen(subject, batch, lambda _: None) as attached:
                logits = subject.forward(batch).logits
            counts[which] += len(attached.heard)
            if not torch.equal(logits, plain):
                wrong.append("logits of a listener moved")

    def edited() -> None:
        for _ in range(8):
            with edit(subject, edits.zero("*")) as reports:
                subject.forward(batch)
            if reports[0].fired != 3:
                wrong.append(f"fired {reports[0].fired}")

    def bystander() -> None:
        for _ in range(24):
            if not torch.equal(subject.forward(batch).logits, plain):
                wrong.append("logits of a bystander moved")

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, i) for i in (0, 1)]
        running += [pool.submit(edited), pool.submit(bystander)]
        for future in running:
            future.result()
    assert counts == [24, 24]
    assert not wrong


def test_a_hook_that_is_being_attached_or_removed_does_not_harm_other_threads(
    subject: Subject,
) -> None:
    # PyTorch keeps hooks and their `with_kwargs` flags apart: between the two steps of attaching,
    # another thread calls the hook without kwargs.
    batch = subject.prepare(input_ids=IDS)
    plain = subject.forward(batch).logits
    with listen(subject, batch, lambda _: None):
        flags = []
        for module in subject.model.modules():
            for kept in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs):
                flags.append((kept, dict(kept)))
                kept.clear()
        with ThreadPoolExecutor(1) as pool:
            logits = pool.submit(subject.forward, batch).result().logits
        for kept, before in flags:
            kept.update(before)
        subject.forward(batch)
    assert torch.equal(logits, plain)


class Stop(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("place", ["listener", "body", "edit"])
def test_everything_is_restored_after_an_error(
    subject: Subject, error: type[BaseException], place: str
) -> None:
    batch = subject.prepare(input_ids=IDS)
    plain = subject.forward(batch).logits
    before = hooks(subject.model)
    implementation = subject.attention_implementation
    subject.model.train()

    def fail(*_: object) -> Tensor:
        raise error("planted")

    spoiled = edits.edit_pattern("L0H0", fail if place == "edit" else lambda p, _: p * 0)
    listener = fail if place == "listener" else lambda _: None
    planted = pytest.raises(error, match="planted")
    with planted, edit(subject, spoiled), listen(subject, batch, listener):
        assert hooks(subject.model) > before
        subject.forward(batch)
        raise error("planted")
    assert all(module.training for module in subject.model.modules())
    subject.model.eval()
    assert hooks(subject.model) == before
    assert subject.attention_implementation == implementation
    assert torch.equal(subject.forward(batch).logits, plain)


def test_a_block_that_runs_nothing_is_an_error(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    nothing = pytest.raises(TapError, match="must reach at least one of 3 attention layers")
    with nothing, listen(subject, batch, lambda _: None):
        pass


def test_a_tower_that_the_input_does_not_reach_is_an_error() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    batch = subject.prepare(input_ids=IDS)
    with pytest.raises(TapError, match=r"vision.L0, vision.L1 were not.*Add what reaches it"):
        capture(subject, batch, z="vision.*")


def test_weights_that_are_not_finite_name_their_layer() -> None:
    model = tiny.llama()
    subject = Subject(model)
    subject.layout  # noqa: B018
    model.model.layers[2].self_attn.v_proj.weight.data[3, 1] = float("nan")
    batch = subject.prepare(input_ids=IDS)
    with pytest.raises(TapError, match=r"output of language.L2, is not finite"):
        capture(subject, batch, patterns="*")


def test_attention_in_a_thread_without_a_tap_is_left_alone(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    seen: list[int] = []

    def other() -> None:
        subject.forward(batch)

    with listen(subject, batch, lambda call: seen.append(call.step)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not seen
        subject.forward(batch)
    assert len(seen) == 3


def test_gradients_flow_through_an_edit(subject: Subject) -> None:
    batch = subject.prepare(input_ids=IDS)
    gain = torch.ones((), requires_grad=True)

    def scaled(z: Tensor, _: EditPlace) -> Tensor:
        return z * gain

    with edit(subject, edits.edit_z("L1H2", scaled)):
        subject.call(batch).logits[0, -1, 7].backward()
    step = 1e-2
    logits = []
    for factor in (1 + step, 1 - step):
        with edit(subject, edits.scale("L1H2", factor)):
            logits.append(subject.forward(batch).logits[0, -1, 7])
    assert gain.grad is not None
    assert torch.isclose(gain.grad, (logits[0] - logits[1]) / (2 * step), rtol=1e-2)
    subject.model.zero_grad()
