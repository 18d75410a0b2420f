"""Ask a subject many prompts under several conditions, in batches, condition by condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from headscope.batching import batches, longest_first
from headscope.evaluating.answer_journal import (
    Answer,
    AnswerJournal,
    Chunk,
    agreed,
    leave_out,
)
from headscope.evaluating.conditions import Condition, under
from headscope.evaluating.pace import Pace
from headscope.plan import AskedWrongly
from probes.inputs import InputError

if TYPE_CHECKING:
    from probes.edits.edit import EditReport
    from probes.inputs import Batch, Example
    from probes.subject import Subject

TRIED = 8
"""Prompts that a method may refuse before it is said to work on none."""
Progress = Callable[[int, int, int], None]
"""Called with answers given (under all conditions), answers in all, prompts skipped."""


@dataclass(frozen=True)
class Asking:
    """What is asked, and how.

    Attributes:
        probes: id of a prompt -> a beginning of the answer and a continuation whose probability
            after it is wanted.
        strict: stop at the first prompt that cannot be prepared.
    """

    prompts: Sequence[Example]
    max_new_tokens: int
    batch_size: int
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    strict: bool = False

    @property
    def chunks(self) -> list[list[Example]]:
        """The prompts that are asked together: those of similar length."""
        ordered, size = longest_first(self.prompts), self.batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def ask_all(
    subject: Subject,
    asking: Asking,
    conditions: Mapping[str, Condition],
    journals: Mapping[str, AnswerJournal],
    progress: Progress | None = None,
) -> None:
    """Fill the journals; chunks that a journal has are not asked again.

    Every chunk is answered under all conditions before the next one, so that times are of the same
    minutes of the machine; which condition comes first goes round. A prompt that a method cannot
    work on is left out under all conditions, as they are compared on the same images.

    Raises:
        InputError: such a prompt, if all must be asked or nobody can tell which it is.
    """
    chunks = asking.chunks
    total = len(asking.prompts) * len(conditions)
    names = list(conditions)
    own = {name: _for(asking, subject, conditions[name]) for name in names}
    if progress is not None:
        progress(*_so_far(journals, total))
    for number, prompts in enumerate(chunks):
        turn = number % len(names)
        left = [n for n in names[turn:] + names[:turn] if number not in journals[n].chunks]
        skipped = agreed(journals, number)
        rest = [prompt for prompt in prompts if prompt.id not in {item["id"] for item in skipped}]
        while left:
            found = list(skipped)
            prepared = list(_batches(subject, rest, asking, found))
            try:
                for name in tuple(left):
                    answered = _answer(subject, prepared, own[name], conditions[name])
                    journals[name].add(answered.chunk(number, found))
                    left.remove(name)
                    if progress is not None:
                        progress(*_so_far(journals, total))
            except InputError as error:
                if asking.strict or error.example_id not in {prompt.id for prompt in rest}:
                    raise
                rest = [prompt for prompt in rest if prompt.id != error.example_id]
                reason = str(error).removeprefix(f"Example {error.example_id!r}").lstrip(": ")
                skipped.append({"id": str(error.example_id), "reason": reason})
                leave_out(journals, number, skipped[-1])


def try_out(subject: Subject, asking: Asking, conditions: Mapping[str, Condition]) -> None:
    """Answer one prompt with two tokens under every condition: what cannot work fails here.

    It also warms the machine up, so that the first times are like the others.

    Raises:
        InputError: a method can work on none of the first `TRIED` prompts.
    """
    trial = Asking(asking.prompts, 2, 1, asking.probes)
    refused: list[InputError] = []
    for prompts in trial.chunks:
        prepared = list(_batches(subject, prompts, trial, []))
        try:
            for condition in conditions.values() if prepared else ():
                _answer(subject, prepared, _for(trial, subject, condition), condition)
        except InputError as error:
            refused.append(error)
            if asking.strict or len(refused) == TRIED:
                raise refused[0] from None
            continue
        if prepared:
            return
    if refused:
        raise refused[0]


def _for(asking: Asking, subject: Subject, condition: Condition) -> Asking:
    """Without probes where a forward would not show what the edit does."""
    return replace(asking, probes={}) if condition.of_generation_alone(subject) else asking


@dataclass
class _Answered:
    answers: list[Answer] = field(default_factory=list)
    first_seconds: float = 0.0
    later_seconds: float = 0.0
    later_steps: int = 0
    fired: int = 0
    touched: int = 0

    def chunk(self, number: int, skipped: Sequence[dict[str, str]]) -> Chunk:
        return Chunk(
            number,
            tuple(self.answers),
            self.first_seconds,
            self.later_seconds,
            self.later_steps,
            self.fired,
            self.touched,
            tuple(skipped),
        )


def _answer(
    subject: Subject, prepared: Sequence[Batch], asking: Asking, condition: Condition
) -> _Answered:
    done = _Answered()
    if not prepared:
        return done
    with under(subject, condition) as report:
        for batch in prepared:
            _answer_batch(subject, batch, asking, done)
    _note(report, done)
    return done


def _answer_batch(subject: Subject, batch: Batch, asking: Asking, done: _Answered) -> None:
    pace = Pace(subject.device)
    made = subject.generate(batch, asking.max_new_tokens, stopping_criteria=[pace])
    done.first_seconds += pace.first - pace.started
    done.later_seconds += pace.last - pace.first
    done.later_steps += max(0, pace.steps - 1)
    probed = _probed(subject, batch, asking)
    ends = _end_ids(subject)
    for example, ids, text in zip(batch.examples, made.ids.tolist(), made.texts, strict=True):
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        tokens = len(ids) if end is None else end + 1
        done.answers.append(
            Answer(example.id, text.strip(), tokens, end is not None, probed.get(example.id))
        )


def _probed(subject: Subject, batch: Batch, asking: Asking) -> dict[str, float]:
    from probes.continuation import continuation_log_probability

    wanted = [example for example in batch.examples if example.id in asking.probes]
    if not wanted:
        return {}
    pairs = [asking.probes[example.id] for example in wanted]
    beginnings, continuations = zip(*pairs, strict=True)
    found = continuation_log_probability(subject, wanted, beginnings, continuations)
    return dict(zip((example.id for example in wanted), found.tolist(), strict=True))


def _batches(
    subject: Subject, prompts: Sequence[Example], asking: Asking, skipped: list[dict[str, str]]
) -> Sequence[Batch]:
    def skip(example: Example, reason: str) -> None:
        if asking.strict:
            raise ValueError(
                f"Example {example.id!r} cannot be asked: {reason} Leave out `--strict` to go on "
                "without it."
            )
        skipped.append({"id": example.id, "reason": reason})

    found = list(batches(subject, prompts, asking.batch_size, skip))
    for batch in found:
        _refuse_too_long(subject, batch, asking.max_new_tokens)
    return found


def _refuse_too_long(subject: Subject, batch: Batch, max_new_tokens: int) -> None:
    most = subject.context_length
    ids = batch.tensors.get("input_ids")
    if most is None or ids is None or getattr(subject.config, "is_encoder_decoder", False):
        return
    if ids.shape[1] + max_new_tokens > most:
        raise AskedWrongly(
            f"`--max-new-tokens` must be at most {max(0, most - ids.shape[1])} for prompts of "
            f"{ids.shape[1]} tokens in a context of {most}, got {max_new_tokens}."
        )


def _end_ids(subject: Subject) -> set[int]:
    config = getattr(subject.model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    return set(ends) if isinstance(ends, (list, tuple)) else set() if ends is None else {ends}


def _note(report: EditReport | None, done: _Answered) -> None:
    if report is not None:
        done.fired, done.touched = report.fired, report.touched


def _so_far(journals: Mapping[str, AnswerJournal], total: int) -> tuple[int, int, int]:
    done = sum(journal.answered + journal.left_out for journal in journals.values())
    return done, total, max((journal.left_out for journal in journals.values()), default=0)
