"""Loss recovered: by hand, against forwards with hooks of torch, and where it has no meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hand_coders import identity, nothing
from torch import Tensor, nn

from probes.inputs import Batch
from probes.subject import Subject
from sae.judging.loss_recovered import loss_recovered, losses_recovered
from sae.judging.loss_sums import LossSums
from tests import tiny_models as tiny
from tests.drawn_coders import batch_of, drawn_coder, redrawn, subject_of

SITE = "language.L1"
PROJECTION = "transformer.h.1.attn.c_proj"
TEXTS = ["a b c the cat sat", "on a mat", "describe the cat on a mat ?", "e", "d e f a b c d e f"]


class NextToken:
    """Cross entropy of every real token but the first, written out."""

    name, unit = "next_token", "nats"

    def __call__(self, batch: Batch, output: Any, intact: Any) -> tuple[Tensor, Tensor]:
        ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"].bool()
        log_p = output.logits.double().log_softmax(-1)
        total, reads = torch.zeros(batch.size), torch.zeros(batch.size)
        for row in range(ids.shape[0]):
            for at in range(1, ids.shape[1]):
                if mask[row, at] and mask[row, at - 1]:
                    total[row] -= log_p[row, at - 1, ids[row, at]].float()
                    reads[row] += 1
        return total, reads


class Given:
    """Losses that are written down: per state of the output, told by who calls."""

    name, unit = "given", "points"

    def __init__(self, values: list[list[float]]) -> None:
        self.values = iter(values)

    def __call__(self, batch: Batch, output: Any, intact: Any) -> tuple[Tensor, Tensor]:
        return torch.tensor(next(self.values)), torch.tensor([1.0, 3.0])


def subject_and_batches() -> tuple[Subject, list[Batch]]:
    subject = Subject(redrawn(tiny.gpt2(), size=0.5), tiny.tokenizer("left"))
    whole = [subject.prepare(text=TEXTS[:3]), subject.prepare(text=TEXTS[3:])]
    return subject, whole


@contextmanager
def replaced(model: nn.Module, new: Any) -> Iterator[None]:
    def hook(_: nn.Module, args: Any) -> Any:
        return (new(args[0]), *args[1:])

    handle = model.get_submodule(PROJECTION).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_hooks(subject: Subject, batches: list[Batch], new: Any) -> tuple[float, float]:
    total = reads = 0.0
    for batch in batches:
        with replaced(subject.model, new), torch.no_grad():
            output = subject.model(**batch.tensors)
        one, count = NextToken()(batch, output, None)
        total, reads = total + float(one.sum()), reads + float(count.sum())
    return total, reads


def test_as_forwards_with_hooks_of_torch() -> None:
    subject, batches = subject_and_batches()
    coder = drawn_coder(12)
    rows = []

    def keep(z: Tensor) -> Tensor:
        rows.append(z.detach())
        return z

    clean, reads = by_hooks(subject, batches, keep)
    real = [z[b.tensors["attention_mask"].bool()] for z, b in zip(rows, batches, strict=True)]
    mean = torch.cat(real).double().mean(0).float()
    spliced, _ = by_hooks(subject, batches, lambda z: coder(z.flatten(0, 1)).reshape(z.shape))
    zero, _ = by_hooks(subject, batches, torch.zeros_like)
    ablated, _ = by_hooks(subject, batches, lambda z: mean.expand_as(z))
    found = loss_recovered(subject, lambda: batches, coder, NextToken(), site=SITE)
    # The text of one token has nothing to be predicted: it counts in no mean.
    assert (found.examples, found.reads) == (4, int(reads)) == (4, 21)
    assert found.clean == pytest.approx(clean / reads, rel=1e-6)
    assert found.spliced == pytest.approx(spliced / reads, rel=1e-6)
    assert found.zero == pytest.approx(zero / reads, rel=1e-6)
    assert found.mean == pytest.approx(ablated / reads, rel=1e-6)
    assert found.increase.value == pytest.approx((spliced - clean) / reads, rel=1e-5)
    json.dumps(found.record(), allow_nan=False)


def by_hand(values: list[list[float]], **how: Any):
    """States come in the order clean, zero, mean, spliced."""
    subject = subject_of("gpt2")
    batch = subject.prepare(text=TEXTS[:2])
    how = {"site": SITE, **how}
    return loss_recovered(subject, lambda: [batch], drawn_coder(12), Given(values), **how)


def test_by_hand_ratios_are_of_sums_and_not_means_of_ratios() -> None:
    # Sums of two examples of 1 and 3 reads.
    found = by_hand([[1.0, 3.0], [3.0, 15.0], [2.0, 7.0], [1.5, 6.0]])
    assert (found.examples, found.reads) == (2, 4)
    assert (found.clean, found.spliced) == (1.0, 7.5 / 4)
    assert (found.zero, found.mean) == (18 / 4, 9 / 4)
    assert found.increase.value == pytest.approx(3.5 / 4)
    assert found.of_zero.value == pytest.approx(10.5 / 14)  # mean of ratios: 0.75, so as well
    assert found.of_mean.value == pytest.approx(1.5 / 5)  # 0.375
    assert found.of_zero.low is not None and found.of_zero.high is not None
    assert found.of_zero.low <= 10.5 / 14 <= found.of_zero.high


def test_nothing_to_recover_is_not_a_number() -> None:
    worse = by_hand([[1.0, 3.0], [0.5, 2.0], [1.0, 3.0], [1.5, 6.0]])
    assert worse.of_zero.value is None
    assert "(zero ablation) must clearly cost" in worse.of_zero.reason
    assert "changes given by -0.375 points" in worse.of_zero.reason
    assert worse.of_mean.value is None and "by 0 points" in worse.of_mean.reason
    # Helps one example and hurts the other: above 0 in all, not clearly.
    mixed = by_hand([[1.0, 3.0], [9.0, 1.0], [9.0, 9.0], [1.5, 6.0]])
    assert mixed.of_zero.value is None and "clearly" in mixed.of_zero.reason
    assert mixed.of_mean.value is not None
    assert mixed.increase.value == pytest.approx(3.5 / 4)


def test_rounding_is_no_cost() -> None:
    found = by_hand([[1.0, 3.0], [1.0 + 1e-6, 3.0 + 1e-6], [2.0, 7.0], [1.0, 3.0]])
    assert found.of_zero.value is None


def test_one_example_is_not_enough() -> None:
    subject = subject_of("gpt2")
    batch = subject.prepare(text=TEXTS[:1])
    found = loss_recovered(subject, lambda: [batch], drawn_coder(12), NextToken(), site=SITE)
    assert found.of_zero.value is None and "At least 2 examples" in found.of_zero.reason
    assert found.increase.value is not None and found.increase.low is None


def test_outputs_that_are_not_finite() -> None:
    nan = float("nan")
    found = by_hand([[1.0, 3.0], [nan, 3.0], [2.0, 7.0], [1.5, 6.0]])
    assert found.zero is None and found.of_zero.value is None
    assert "not finite under zero ablation" in found.of_zero.reason
    assert found.of_mean.value == pytest.approx(1.5 / 5)
    with pytest.raises(ValueError, match=r"spliced output must be finite, .* \(coder at language"):
        by_hand([[1.0, 3.0], [3.0, 15.0], [2.0, 7.0], [1.5, nan]])
    with pytest.raises(ValueError, match="clean output must be finite"):
        by_hand([[nan, 3.0], [3.0, 15.0], [2.0, 7.0], [1.5, 6.0]])


def test_a_complete_dictionary_recovers_all_and_an_empty_one_nothing() -> None:
    subject, batches = subject_of("repeat-lm"), [batch_of("repeat-lm")]
    coders = {"all": identity(128, SITE), "none": nothing(128, SITE)}
    found = losses_recovered(subject, lambda: batches, coders, [NextToken()])
    all_of_it, none = (found[name]["next_token"] for name in ("all", "none"))
    assert all_of_it.of_zero.value == pytest.approx(1, abs=1e-5)
    assert all_of_it.of_mean.value == pytest.approx(1, abs=1e-5)
    assert none.of_zero.value == 0.0 == none.of_zero.high
    assert none.of_mean.value is not None and none.of_mean.value < 0.1
    assert none.spliced == none.zero
    assert all_of_it.increase.value == pytest.approx(0, abs=1e-6)


def test_how_examples_are_batched_changes_nothing() -> None:
    subject, batches = subject_and_batches()
    examples = [example for batch in batches for example in batch.examples]
    other = [subject.prepare(examples=examples[i : i + 1]) for i in (4, 0, 3, 2, 1)]
    coders = {"a": drawn_coder(12), "b": drawn_coder(12, seed=9)}
    sites = dict.fromkeys(coders, SITE)
    one, two = (
        losses_recovered(subject, lambda data=data: data, coders, [NextToken()], sites=sites)
        for data in (batches, other)
    )
    for name in coders:
        left, right = one[name]["next_token"], two[name]["next_token"]
        assert left.reads == right.reads
        for field in ("clean", "spliced", "zero", "mean"):
            assert getattr(left, field) == pytest.approx(getattr(right, field), rel=1e-5)
        assert left.increase.low == pytest.approx(right.increase.low, rel=1e-3, abs=1e-6)
    assert one["a"]["next_token"].spliced != one["b"]["next_token"].spliced


class FirstLogit:
    """The first number of the output, per example: any model has one."""

    name, unit = "first", "logits"

    def __call__(self, batch: Batch, output: Any, intact: Any) -> tuple[Tensor, Tensor]:
        return output.logits.flatten(1).abs().sum(1), torch.ones(batch.size)


def test_examples_that_do_not_reach_the_site_do_not_count() -> None:
    subject = subject_of("shapes-llava")
    seeing = batch_of("shapes-llava")
    blind = subject.prepare(text=["what is there ?", "red"])
    coders = {"vision": nothing(96, "vision.L1"), "language": nothing(128, "language.L2")}
    done: list[int] = []
    found = losses_recovered(
        subject, lambda: [blind, seeing], coders, [FirstLogit()], listener=done.append
    )
    assert found["vision"]["first"].examples == seeing.size
    assert found["language"]["first"].examples == seeing.size + 2
    assert done == [1, 2]
    only = losses_recovered(subject, lambda: [seeing], coders, [FirstLogit()])
    assert only["vision"]["first"] == found["vision"]["first"]
    with pytest.raises(ValueError, match=r"must reach vision.L1, none does. Give data that does"):
        losses_recovered(subject, lambda: [blind], coders, [FirstLogit()])


def test_ablations_are_of_the_same_positions() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    coder = nothing(128, "language.L2")
    how = {"site": "language.L2", "roles": "image"}
    found = loss_recovered(subject, lambda: [batch], coder, FirstLogit(), **how)
    assert found.spliced == found.zero
    everywhere = loss_recovered(subject, lambda: [batch], coder, FirstLogit())
    assert everywhere.zero != found.zero
    with pytest.raises(ValueError, match="must reach language.L2 at positions of register, none"):
        loss_recovered(subject, lambda: [batch], coder, FirstLogit(), roles="register")


def test_bfloat16() -> None:
    subject = Subject(redrawn(tiny.gpt2(), size=0.5).to(torch.bfloat16), tiny.tokenizer("left"))
    batches = [subject.prepare(text=TEXTS[:3]), subject.prepare(text=TEXTS[3:])]
    coder = identity(12, SITE)
    found = loss_recovered(subject, lambda: batches, coder, NextToken())
    assert found.spliced == found.clean


def test_sums_of_no_read_are_refused() -> None:
    with pytest.raises(ValueError, match="something to read for kl at coder, language.L1"):
        LossSums().result("kl", "nats", "coder, language.L1")
    subject, batches = subject_and_batches()

    class Wrong(NextToken):
        def __call__(self, batch: Batch, output: Any, intact: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros(1), torch.zeros(1)

    with pytest.raises(ValueError, match=r"two numbers per example, \[3\], got \[1\] and \[1\]"):
        loss_recovered(subject, lambda: batches, identity(12, SITE), Wrong())
    with pytest.raises(ValueError, match="must be as wide as the heads of language.L1"):
        loss_recovered(subject, lambda: batches, identity(8, SITE), NextToken())
