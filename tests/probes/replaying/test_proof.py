"""Models that a restart could get wrong: they are restarted rightly, or run as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.heads import Site
from probes.replay import record
from probes.subject import Subject
from tests.probes.test_replay import assert_equal


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        z = functional.scaled_dot_product_attention(query, key, value)
        return self.out(z.transpose(1, 2).flatten(2))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up = Attention(), nn.Linear(6, 6)

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        x = x + self.attention(x)
        return x + self.up(x).relu()


class InPlace(Plain):
    """Changes its input, which is what the block before returned."""

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        x += self.attention(x)
        x += self.up(x).relu()
        return x


class AddsToProjected(Plain):
    """The projection's output is changed in place and handed on: the same tensor, other values."""

    class Adding(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).add_(x)

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.Adding()

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        x = self.attention(x)
        return x + self.up(x).relu()


class Sharing(Plain):
    """The first block leaves something for the others in a mapping that all are given."""

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        shared.setdefault("first", x * 2)
        return super().forward(x + shared["first"])


class Remembering(Plain):
    """The first block of a forward leaves something on the class."""

    seen: Tensor | None = None

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        if not shared:
            Remembering.seen = None
        shared["runs"] = shared.get("runs", 0) + 1
        Remembering.seen = x if Remembering.seen is None else Remembering.seen + x
        return super().forward(x) + Remembering.seen


class Beside(Plain):
    """Reads z beside the projection, too: only the projection's input is a head's output."""

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        z = self.z_of(x)
        return x + self.attention.out(z) + z.sum(-1, keepdim=True)

    def __init__(self) -> None:
        super().__init__()
        self.z_of = Values(self.attention)


class Values(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv = attention.qkv

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        z = functional.scaled_dot_product_attention(query, key, value)
        return z.transpose(1, 2).flatten(2)


class Noisy(Plain):
    """Draws random numbers even in evaluation."""

    def forward(self, x: Tensor, shared: Any = None) -> Tensor:
        return super().forward(x + torch.randn(x.shape[1], 1))


class Model(nn.Module):
    def __init__(self, block: type[Plain], shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([block() for _ in range(1 if shared else 3)])
        self.times = 3 if shared else 1
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, shared = self.embed(x), {}
        for _ in range(self.times):
            for block in self.blocks:
                x = block(x, shared=shared)
        return self.head(x)


X = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(5))


def naive(model: Model, site: Site, head: int, value: float) -> Tensor:
    """A whole forward with a plain hook that acts in the right run of a module."""
    number = site.layer if model.times > 1 else 0
    block = model.blocks[0 if model.times > 1 else site.layer]
    runs = iter(range(9))

    def hook(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if next(runs) != number:
            return None
        z = args[0].clone()
        z[..., head * 3 : head * 3 + 3] = value
        return (z,)

    handle = block.attention.out.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            return model(X)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("block", "restarts"),
    [
        (Plain, True),
        (InPlace, True),
        (AddsToProjected, True),
        (Sharing, False),
        (Remembering, False),
        (Beside, True),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_every_model_gives_what_a_whole_forward_gives(
    block: type[Plain], restarts: bool, shared: bool
) -> None:
    subject = Subject(Model(block, shared).eval())
    recorded = record(subject, subject.prepare(x=X))
    for _ in range(2):
        for site in recorded.z:
            expected = naive(subject.model, site, 1, 0.5)
            assert_equal(recorded.run({site: ([1], torch.full((), 0.5))}), expected)
            if restarts or site.layer == 1:
                assert (recorded.restarts(site) is True) is restarts, recorded.restarts(site)
    assert_equal(recorded.output, subject.model(X))


def test_random_numbers_are_those_of_the_recorded_forward() -> None:
    subject = Subject(Model(Noisy).eval())
    recorded = record(subject, subject.prepare(x=X))
    site = Site("encoder", 0)
    assert site in recorded.z
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = recorded.run({site: ([1], torch.zeros(()))})
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(recorded.run_whole({site: ([1], torch.zeros(()))}), one)
    intact = recorded.run_whole({site: (range(2), recorded.z[site])})
    assert_equal(intact, recorded.output)


def test_a_proof_that_fails_says_what_happened() -> None:
    subject = Subject(Model(Sharing).eval())
    recorded = record(subject, subject.prepare(x=X))
    reason = str(recorded.restarts(Site("encoder", 1)))
    assert reason.startswith("Started at encoder.L1, the model gives something else")
