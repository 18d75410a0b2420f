"""Who answers in place of a module, in which thread, and what is left behind."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.replay import record
from probes.replaying.short_circuit import Action, own_forward, short_circuit
from probes.subject import Subject
from tests import tiny_models as tiny
from tests.probes.test_tap import IDS, LEFT, hooks


def saying(value: float, required: bool = True) -> Action:
    return Action(lambda *_: torch.tensor(value), required=required)


def linear() -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(3.0)
    return module.requires_grad_(False)


ONE = torch.ones(1)


def overridden(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if "forward" in module.__dict__]


def test_calls_are_answered_by_their_number() -> None:
    module = linear()
    with short_circuit({module: [None, saying(5.0), None]}) as unplayed:
        assert [float(module(ONE)) for _ in range(1)] == [3.0]
        assert unplayed() == [module]
        assert [float(module(ONE)) for _ in range(3)] == [5.0, 3.0, 3.0]
        assert unplayed() == []
        assert float(own_forward(module)(ONE)) == 3.0
    assert not overridden(module)
    assert float(module(ONE)) == 3.0


def test_what_is_not_required_may_stay_out() -> None:
    module = linear()
    with short_circuit({module: [saying(5.0, required=False)]}) as unplayed:
        assert unplayed() == []


def test_a_forward_that_somebody_put_there_before_comes_back() -> None:
    module = linear()
    theirs = functools.partial(lambda own, x: own(x) + 100, module.forward)
    module.forward = theirs  # as accelerate does
    with short_circuit({module: [saying(5.0)]}):
        assert float(module(ONE)) == 5.0
        assert float(module(ONE)) == 103.0
    assert module.__dict__["forward"] is theirs


def test_an_inner_script_is_played_before_an_outer_one_goes_on() -> None:
    module = linear()
    with short_circuit({module: [saying(5.0), saying(6.0)]}):
        assert float(module(ONE)) == 5.0
        with short_circuit({module: [saying(7.0)]}):
            assert float(module(ONE)) == 7.0
        assert float(module(ONE)) == 6.0
    assert not overridden(module)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_forwards_come_back_after_an_error(error: type[BaseException]) -> None:
    module = linear()

    def fail(*_: Any) -> Tensor:
        raise error

    with pytest.raises(error), short_circuit({module: [Action(fail)]}):
        module(ONE)
    assert not overridden(module)
    assert float(module(ONE)) == 3.0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_replay_that_fails_half_way_leaves_nothing_behind(error: type[BaseException]) -> None:
    subject = Subject(tiny.llama().train())
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    recorded = record(subject, batch)
    changes = {Site("language", 1): ([2], torch.zeros(1))}
    expected, before = recorded.run(changes).logits, hooks(subject.model)

    def fail(*_: Any) -> None:
        raise error

    handle = subject.model.get_submodule("model.layers.2.mlp").register_forward_pre_hook(fail)
    with pytest.raises(error):
        recorded.run(changes)
    handle.remove()
    assert not overridden(subject.model)
    assert hooks(subject.model) == before
    assert all(module.training for module in subject.model.modules())
    assert torch.equal(recorded.run(changes).logits, expected)


def test_each_thread_plays_its_own_part_and_others_run_the_model() -> None:
    subject = Subject(tiny.llama())
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    other = subject.prepare(input_ids=IDS.flip(1))
    recorded = record(subject, batch)
    sites = list(recorded.z)
    changes = [{site: ([head], torch.zeros(1))} for site in sites for head in range(6)]
    expected = [recorded.run_whole(change).logits for change in changes]
    plain = subject.forward(other).logits
    start, done = threading.Barrier(3), threading.Event()

    def replay(numbers: range) -> bool:
        start.wait()
        return all(torch.equal(recorded.run(changes[n]).logits, expected[n]) for n in numbers)

    def forward() -> bool:
        start.wait()
        same = True
        while not done.is_set():
            same = same and torch.equal(subject.model(input_ids=IDS.flip(1)).logits, plain)
        return same

    with ThreadPoolExecutor(3) as pool:
        undisturbed = pool.submit(forward)
        replays = [pool.submit(replay, range(start, 18, 2)) for start in (0, 1)]
        try:
            assert all(one.result() for one in replays)
        finally:
            done.set()
        assert undisturbed.result()
    assert not overridden(subject.model)
