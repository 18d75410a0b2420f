"""Pairs of inputs that differ in one thing, run side by side: a clean and a corrupted batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from analysis.importance.patches.answer_tokens import classes, corrupted, first_tokens
from analysis.importance.readings import ReadingError, logits_of
from probes.inputs import Batch, Example, InputError

if TYPE_CHECKING:
    from probes.subject import Subject

Direction = Literal["noising", "denoising"]
DIRECTIONS: tuple[Direction, ...] = ("noising", "denoising")

_IDS = ("decoder_input_ids", "input_ids")


@dataclass(frozen=True)
class Pairs:
    """Two batches of equal shapes and the two answers that each of their examples is read for.

    Attributes:
        clean, corrupted: the halves; position for position the same, but for what was changed.
        tower: tower of the position that is read; empty where the model says a class.
        position: long ``[example]``: position behind which the answer stands; -1 for a class.
        correct, wrong: long ``[example]``: token (or class) of the answer, clean and corrupted.
    """

    clean: Batch
    corrupted: Batch
    tower: str
    position: Tensor
    correct: Tensor
    wrong: Tensor

    @property
    def size(self) -> int:
        """Number of pairs."""
        return self.clean.size

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(example.id for example in self.clean.examples)

    @property
    def positions(self) -> Tensor | None:
        """Long ``[kept]``: every position that is read, ascending; None for classes."""
        return self.position.unique() if self.tower else None

    def difference(self, output: Any, kept: Tensor | None = None, copies: int = 1) -> Tensor:
        """Float64 ``[copy example]``: logit of the correct answer minus that of the wrong one.

        Args:
            kept: the positions that the logits' sequence axis holds; None for all.
            copies: how many copies of the batch lie one after the other in the output.

        Raises:
            ReadingError: the output has no such logits, or they are not finite.
        """
        logits = logits_of(output)
        if logits.ndim != (3 if self.tower else 2):
            wanted = "next tokens [batch position token]" if self.tower else "[batch class]"
            raise ReadingError(
                f"Patching reads logits of {wanted}, got {list(logits.shape)}. Load the model with "
                "a head for the next token or for classes."
            )
        rows = torch.arange(copies * self.size, device=logits.device)
        if self.tower:
            place = self.position
            if kept is not None:
                place = torch.searchsorted(kept.cpu(), place)
            logits = logits[rows, place.to(logits.device).repeat(copies)]
        read = logits.double()
        correct, wrong = (
            read[rows, answer.to(logits.device).repeat(copies)]
            for answer in (self.correct, self.wrong)
        )
        found = (correct - wrong).reshape(copies, self.size).cpu()
        if not bool(torch.isfinite(found).all()):
            raise ReadingError(
                "Logits of a pair must be finite, got NaN or infinity. Check the model's weights, "
                "or load it in float32."
            )
        return found

    def exchanged(self) -> Pairs:
        """The same with clean and corrupted exchanged; the answers stay what they are."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)


def is_pair(example: Example) -> bool:
    """Whether an example has a corrupted half and two answers to be told apart."""
    return example.corrupt is not None and None not in (example.correct, example.wrong)


def pair_up(
    subject: Subject, examples: Sequence[Example], padding_side: str | None = None
) -> Pairs:
    """Both halves of some pairs, prepared alike.

    Args:
        padding_side: as `Subject.prepare` takes it.

    Raises:
        InputError: an example is no pair, its halves differ in length, or its answers cannot be
            told apart by one token; the sentence names the example.
    """
    halves = [list(examples), [corrupted(example) for example in examples]]
    clean, other = (subject.prepare(examples=h, padding_side=padding_side) for h in halves)
    name = _ids_of(subject, clean)
    if not name:
        answers = torch.tensor([classes(subject, example) for example in examples])
        unread = torch.full((len(examples),), -1)
        _refuse_other_shapes(clean, other)
        return Pairs(clean, other, "", unread, answers[:, 0], answers[:, 1])
    _refuse_other_lengths(clean, other)
    _refuse_other_shapes(clean, other)
    _, last = _real(clean, name)
    found = [first_tokens(subject, example) for example in examples]
    ends = clean.tensors[name].cpu()[torch.arange(len(examples)), last]
    for example, end, (_, _, before) in zip(examples, ends.tolist(), found, strict=True):
        if before not in (-1, end):
            raise InputError(
                f"Example {example.id!r}: what the model reads must end with the prompt, and its "
                f"last token is {subject.tokenizer.decode([end])!r}. Use a tokenizer that puts "
                "nothing behind a text.",
                example_id=example.id,
            )
    correct, wrong = (torch.tensor([ids[which] for ids in found]) for which in (0, 1))
    tower = "decoder" if name != "input_ids" else "language"
    return Pairs(clean, other, tower, last, correct, wrong)


def _ids_of(subject: Subject, batch: Batch) -> str:
    """The tensor that holds the tokens of what is said next; empty where classes are said."""
    if not subject.generates:
        return ""
    for name in _IDS:
        if name in batch.tensors:
            return name
    return ""


def _real(batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Long ``[example]`` each: first and last position that is not padding."""
    ids = batch.tensors[name].cpu()
    mask = batch.tensors.get(name.replace("input_ids", "attention_mask"))
    real = torch.ones_like(ids) if mask is None else mask.cpu().long()
    return real.argmax(-1), ids.shape[1] - 1 - real.flip(-1).argmax(-1)


def _refuse_other_lengths(clean: Batch, other: Batch) -> None:
    for name in _IDS:
        if name not in clean.tensors or name not in other.tensors:
            continue
        lengths = [
            (last - first + 1).tolist() for first, last in (_real(clean, name), _real(other, name))
        ]
        for example, mine, theirs in zip(clean.examples, *lengths, strict=True):
            if mine != theirs:
                raise InputError(
                    f"Example {example.id!r}: both halves of a pair must have as many tokens, "
                    f"because patching goes position for position, got {mine} and {theirs} in "
                    f"{name}. Exchange the words that differ for words of as many tokens.",
                    example_id=example.id,
                )


def _refuse_other_shapes(clean: Batch, other: Batch) -> None:
    for name, value in clean.tensors.items():
        theirs = other.tensors.get(name)
        if isinstance(value, Tensor) and isinstance(theirs, Tensor) and value.shape == theirs.shape:
            continue
        if not isinstance(value, Tensor) and _shapes(value) == _shapes(theirs):
            continue
        raise InputError(
            f"Both halves of a pair must give {name!r} of one shape, because patching goes "
            f"position for position, got {_shapes(value)} and {_shapes(theirs)}. Use images of "
            "one size and texts of one length.",
            example_id=clean.examples[0].id if clean.size == 1 else None,
        )


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, (list, tuple)):
        return [_shapes(item) for item in value]
    return value
