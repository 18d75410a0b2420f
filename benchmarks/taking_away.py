"""Who takes heads away: a loop of whole forwards, the study, and the study with copies folded in.

Each gives the same numbers: what the model loses, example by example, without one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

READS = {"tokens": "loss of every token", "answer": "loss at the answer position"}


@dataclass(frozen=True)
class Workload:
    """A model, a batch, and the study that takes heads away from it.

    Attributes:
        ablation: begun, with zero ablation and the loss in nats as its effect.
        reading: where the loss is read.
        positions: long ``[kept]``, what every contender gives as ``logits_to_keep``.
    """

    subject: Any
    batch: Any
    ablation: Any
    reading: Any
    positions: Tensor

    @property
    def sites(self) -> list[Any]:
        return [place.site for place in self.subject.layout.sites]

    @property
    def heads(self) -> int:
        return self.subject.layout.sites[0].heads

    def intact(self) -> Any:
        """The model's own forward on this batch, as everybody would call it."""
        ids = self.batch.tensors["input_ids"]
        return self.subject.model(input_ids=ids, use_cache=False, logits_to_keep=self.positions)


def workload(
    read: str, rows: int, length: int, device: str, dtype: str, toy: bool = False
) -> Workload:
    """GPT-2 small in size on text-like tokens ``[rows length]``."""
    from gpt2_small import like_text, make_model

    import headscope as hs
    from analysis.importance.leave_one_out import importance
    from analysis.importance.study import StudyOptions

    model = make_model(length, device, dtype, toy=toy)
    ids = like_text(rows * length, model.config.vocab_size).reshape(rows, length)
    subject = hs.load(model)
    batch = subject.on_device(subject.prepare(input_ids=ids))
    if read == "answer":
        batch = replace(batch, answer_starts=(length - 1,) * rows)
    ablation = importance(StudyOptions(effects=("cross_entropy",), ablation="zero"))
    ablation.begin(subject, lambda: [batch])
    assert ablation.reader is not None
    reading = ablation.reader.reading(batch)
    assert reading.positions is not None
    return Workload(subject, batch, ablation, reading, reading.positions.to(device))


class Contender(Protocol):
    """Takes heads away.

    Attributes:
        effects: ``(layer, head)`` to float64 ``[example]``, nats per read, as far as it was run.
    """

    effects: dict[tuple[int, int], Tensor]

    def start(self) -> None:
        """The forward of the intact model, once per batch."""
        ...

    def run(self, site: Any, heads: Sequence[int]) -> None:
        """Take these heads of a layer away, one at a time."""
        ...


@dataclass
class Naive:
    """One whole forward per head: a pre-hook zeroes what the output projection reads of it."""

    work: Workload
    effects: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    comparison: Any = None

    def start(self) -> None:
        from analysis.importance.comparison import Comparison

        with torch.inference_mode():
            intact = SimpleNamespace(output=self.work.intact(), positions=self.work.positions)
            self.comparison = Comparison(
                self.work.ablation.effects, cast("Any", intact), self.work.reading
            )
            self.comparison.changes(intact.output, "language")
            intact.output = None  # what is needed of it was kept: a loop need not hold the logits

    def run(self, site: Any, heads: Sequence[int]) -> None:
        anatomy = self.work.subject.layout.anatomy
        projection = self.work.subject.model.get_submodule(anatomy.projections[site].path)
        width = anatomy.shapes[site][1]
        for head in heads:
            zero = zeroing(slice(head * width, (head + 1) * width))
            handle = projection.register_forward_pre_hook(zero)
            try:
                with torch.inference_mode():
                    change = self.comparison.changes(self.work.intact(), "language")
            finally:
                handle.remove()
            self.effects[site.layer, head] = per_read(self.work, change)


@dataclass
class Restarted:
    """What `Ablation.score` does, for some heads: record once, restart at the head's layer."""

    work: Workload
    effects: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    recorded: Any = None
    comparison: Any = None

    def start(self) -> None:
        self.recorded, self.comparison = self.work.ablation.record(
            self.work.subject, self.work.batch
        )
        self.comparison.changes(self.recorded.output, "language")

    def run(self, site: Any, heads: Sequence[int]) -> None:
        for head, values in self.changes(site, heads):
            output = self.recorded.run({site: ([head], values)})
            change = self.comparison.changes(output, "language")
            self.effects[site.layer, head] = per_read(self.work, change)

    def changes(self, site: Any, heads: Sequence[int]) -> list[tuple[int, Tensor]]:
        values = self.work.ablation.replacement.values(self.recorded, site, 0)
        values = values.expand(self.recorded.z[site].shape)
        return [(head, values[:, :, [head]]) for head in heads]


@dataclass
class Folded(Restarted):
    """The same with several heads at once, each in a copy of the batch."""

    copies: int = 12

    def run(self, site: Any, heads: Sequence[int]) -> None:
        for start in range(0, len(heads), self.copies):
            some = self.changes(site, heads[start : start + self.copies])
            variants = [([head], values) for head, values in some]
            output = self.recorded.run_copies(site, variants)
            found = self.comparison.changes_of_copies(output, "language", len(some))
            for (head, _), change in zip(some, found, strict=True):
                self.effects[site.layer, head] = per_read(self.work, change)


def contenders(work: Workload, copies: int) -> dict[str, Contender]:
    """By name: ``naive``, ``ours`` and, with more than one copy, ``folded``."""
    found: dict[str, Contender] = {"naive": Naive(work), "ours": Restarted(work)}
    if copies > 1:
        found["folded"] = Folded(work, copies=copies)
    return found


def per_read(work: Workload, change: dict[str, Tensor]) -> Tensor:
    """Float64 ``[example]``: the loss of the real target, averaged over the example's reads."""
    return change["cross_entropy"][:, 0] / work.reading.counts


def zeroing(part: slice) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A pre-hook of an output projection that reads zeros in place of one head."""

    def zero(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., part] = 0
        return (z, *args[1:])

    return zero


def largest_difference(one: Contender, other: Contender) -> dict[str, float]:
    """Nats: the largest difference of two contenders' effects, and their largest effect."""
    both = [key for key in one.effects if key in other.effects]
    assert both
    difference = max(float((one.effects[k] - other.effects[k]).abs().max()) for k in both)
    largest = max(float(one.effects[k].abs().max()) for k in both)
    return {"difference": difference, "largest": largest, "heads": len(both)}
