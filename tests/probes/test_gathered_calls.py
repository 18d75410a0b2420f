"""A module that makes one attention call per head: its calls are gathered into one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.listening import listen
from probes.subject import Subject
from probes.tap import TapError

HEADS, WIDTH = 3, 5


class HeadByHead(nn.Module):
    """Attention that writes out one softmax per head, and may fail before its last."""

    def __init__(self) -> None:
        super().__init__()
        size = HEADS * WIDTH
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.output = nn.Linear(size, size), nn.Linear(size, size)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for head in range(HEADS):
            mine = slice(head * WIDTH, (head + 1) * WIDTH)
            scores = self.query(x)[..., mine] @ self.key(x)[..., mine].mT
            pattern = torch.softmax(scores, dim=-1)
            if self.fails and head == HEADS - 1:
                raise ValueError("halfway")
            parts.append(pattern @ self.value(x)[..., mine])
        return self.output(torch.cat(parts, dim=-1))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([HeadByHead(), HeadByHead()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject(Stack().eval())


def batch_of(subject: Subject, seed: int = 1):
    x = torch.randn(2, 7, HEADS * WIDTH, generator=torch.Generator().manual_seed(seed))
    return subject.prepare(x=x)


def test_listeners_see_a_pattern_whose_scores_were_edited(subject: Subject) -> None:
    batch = batch_of(subject)
    plain = capture(subject, batch, patterns="encoder.L0")
    with edit(subject, edits.knock_out("encoder.L0H1", keys=[3])):
        seen = capture(subject, batch, patterns="encoder.L0")
    edited = seen.pattern("encoder.L0H1")
    assert isinstance(edited, Tensor)
    assert not edited[..., 3].any()
    assert torch.allclose(edited.sum(-1), torch.ones(2, 7))
    for head in (0, 2):
        there, before = (c.pattern(f"encoder.L0H{head}") for c in (seen, plain))
        assert isinstance(there, Tensor) and isinstance(before, Tensor)
        assert torch.equal(there, before)


def test_a_forward_that_failed_halfway_leaves_no_heads_behind(subject: Subject) -> None:
    first, second = batch_of(subject, 1), batch_of(subject, 2)
    expected = capture(subject, second, patterns="encoder.L1").pattern("encoder.L1")
    seen: dict[str, Tensor] = {}
    layer = subject.model.get_submodule("layers.1")
    assert isinstance(layer, HeadByHead)
    with listen(subject, None, lambda call: seen.update({str(call.site): call.pattern()})):
        layer.fails = True
        with pytest.raises(ValueError, match="halfway"):
            subject.forward(first)
        layer.fails = False
        subject.forward(second)
    assert isinstance(expected, Tensor)
    assert torch.equal(seen["encoder.L1"], expected)


def test_a_call_that_failed_its_proof_is_asked_for_it_again(subject: Subject) -> None:
    batch = batch_of(subject)
    subject.layout  # noqa: B018, observed before the weights break
    subject.model.get_parameter("layers.0.value.weight").data.fill_(float("nan"))
    with (
        pytest.raises(TapError, match="is not finite"),
        listen(subject, None, lambda call: None),
    ):
        with pytest.raises(TapError, match="is not finite"):
            subject.forward(batch)
        subject.forward(batch)


@pytest.mark.parametrize("captured", [(), "encoder.L0"])
def test_given_z_is_put_into_the_head_that_is_named(subject: Subject, captured: object) -> None:
    batch = batch_of(subject)
    plain = capture(subject, batch, z=["encoder.L0"]).z("encoder.L0")
    new = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3))
    for values in ({"encoder.L0": new}, {"encoder.L0H2": new[:, :, 2]}):
        with edit(subject, edits.replace("encoder.L0H2", values)):
            seen = capture(subject, batch, patterns=captured, z=["encoder.L0"])  # type: ignore[arg-type]
        assert torch.equal(seen.z("encoder.L0")[:, :, 2], new[:, :, 2])
        assert torch.equal(seen.z("encoder.L0")[:, :, :2], plain[:, :, :2])


def test_random_heads_are_not_drawn_from_one_head(subject: Subject) -> None:
    batch_of(subject)
    control = edits.matched_random(edits.scale("encoder.L0H2", 2.0))
    said = "draws heads of one attention call, and encoder.L0 makes several"
    with pytest.raises(ValueError, match=said), edit(subject, control):
        pass
