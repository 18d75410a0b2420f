"""The losses by which coders are judged on a model and data: of words, of classes, of vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.effects import EFFECTS, Effect
from analysis.importance.log_probability import blocks_of_rows
from analysis.importance.readings import Reading, ReadingError
from analysis.importance.targets import PREDICTED, Reader
from probes.replay import kept_positions

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject
    from sae.judging.losses import PerExample


@dataclass(frozen=True)
class OutputLosses:
    """Losses of a model's output, and how forwards are called for them.

    Attributes:
        losses: the one that decides first: ``cross_entropy`` where there is something to be right
            about (the next token, the answer where examples have one, the class), else ``kl`` on
            logits, else ``cosine`` on vectors; with ``cross_entropy`` also ``kl``.
        settings: gives for a batch what its forward is called with, as
            `sae.judging.loss_recovered.losses_recovered` takes it.
        readable: gives batches without the examples in which there is nothing to read.
    """

    losses: tuple[OutputLoss, ...]
    settings: Callable[[Batch], Mapping[str, Any]]
    readable: Callable[[Iterable[Batch], Callable[[Example, str], None]], Iterator[Batch]]


def output_losses(
    subject: Subject,
    data: Callable[[], Iterable[Batch]],
    *,
    tower: str = "",
    label: str = "",
    seed: int = 0,
) -> OutputLosses:
    """The losses that fit a model and its data, as importance of heads reads them.

    Args:
        data: gives the batches anew each time.
        tower: of the sites that are judged; decides which vector is compared where a model gives
            one for each tower.
        label: field of the data that holds the class; ``predicted`` takes the intact model's own
            answer.

    Raises:
        ReadingError: nothing of the output can be read. Losses raise it where the tower has no
            part in what is read.
    """
    reader = Reader(subject, data, label=label, seed=seed)
    read = _LastReading(subject, reader)
    effects = {"tokens": [KL], "class": [KL], "features": [EFFECTS["cosine"]]}[reader.kind]
    if reader.known_targets:
        effects = [EFFECTS["cross_entropy"], *effects]
    return OutputLosses(
        tuple(OutputLoss(effect, read, tower) for effect in effects),
        lambda batch: read.of(batch).settings,
        lambda batches, skip: _readable(subject, reader, batches, skip),
    )


@dataclass(frozen=True)
class OutputLoss:
    """An effect read as a loss: what is to be small, per read.

    Attributes:
        effect: its objective with the sign turned, or its distance from the intact output.
    """

    effect: Effect
    read: _LastReading
    tower: str = ""

    @property
    def name(self) -> str:
        return self.effect.name

    @property
    def unit(self) -> str:
        return self.effect.unit

    def __call__(self, batch: Batch, output: Any, intact: Any) -> PerExample:
        found = self.read.of(batch)
        reading = self.read.with_targets(batch, intact)
        if self.tower and reading.unread(self.tower):
            raise ReadingError(reading.unread(self.tower))
        now = reading.of(output, found.positions, self.tower)
        targets = reading.target[:, None]
        if self.effect.objective is not None:
            told = -self.effect.objective(now, targets, reading.wrong)
        else:
            before = reading.of(intact, found.positions, self.tower)
            kept = self.effect.kept(before, targets, reading.wrong)
            told = self.effect.change(kept, now, targets, reading.wrong)
        return reading.per_example(told[:, 0]).cpu(), reading.counts


@dataclass(frozen=True)
class _Found:
    reading: Reading
    positions: Tensor | None
    settings: Mapping[str, Any]


class _LastReading:
    """Where the batch that was asked for last is read: several losses ask for the same one."""

    def __init__(self, subject: Subject, reader: Reader) -> None:
        self._subject, self._reader = subject, reader
        self._last: tuple[Batch, _Found] | None = None

    def of(self, batch: Batch) -> _Found:
        """Where it is read, and which logits its forward must keep."""
        if self._last is None or self._last[0] is not batch:
            reading = self._reader.reading(batch)
            positions = kept_positions(self._subject, batch, reading.positions)
            settings = {} if positions is None else {"logits_to_keep": positions}
            self._last = batch, _Found(reading, positions, settings)
        return self._last[1]

    def with_targets(self, batch: Batch, intact: Any) -> Reading:
        """The reading with its targets, those that the intact output decides included."""
        found = self.of(batch)
        if self._reader.label != PREDICTED:
            return found.reading
        read = found.reading.of(intact, found.positions)
        return self._reader.predicted(found.reading, batch, read)


def _readable(
    subject: Subject,
    reader: Reader,
    batches: Iterable[Batch],
    skip: Callable[[Example, str], None],
) -> Iterator[Batch]:
    for batch in batches:
        left: Batch | None = batch
        while left is not None:
            try:
                reader.reading(left)
            except ReadingError as error:
                bad = [example for example in left.examples if example.id == error.example_id]
                rest = [example for example in left.examples if example.id != error.example_id]
                if len(bad) != 1:
                    raise
                skip(bad[0], str(error).removeprefix(f"Example {bad[0].id!r}").lstrip(": "))
                left = subject.prepare(examples=rest) if rest else None
            else:
                yield left
                break


def _itself(read: Tensor) -> Tensor:
    return read


def _divergence(kept: Tensor, read: Tensor) -> Tensor:
    """``[read]``: Kullback-Leibler divergence of the changed from the intact distribution."""
    found = []
    for rows in blocks_of_rows(read):
        # In float64, so that a model that is spliced well is not drowned in rounding.
        log_p, log_q = (torch.log_softmax(part[rows].double(), -1) for part in (kept, read))
        # 0 log 0 is 0; a NaN of the model stays one.
        term = log_p.exp() * (log_p - log_q)
        found.append(term.masked_fill(log_p == -torch.inf, 0.0).sum(-1))
    return torch.cat(found) if found else read.new_zeros(0)


KL = Effect("kl", "nats", "logits", keep=_itself, distance=_divergence)
"""``KL(intact | changed)`` of the distributions over words or classes: SAEBench's divergence."""
