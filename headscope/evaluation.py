"""Ask a model about images, with and without edits, and count what it makes up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.evaluating.answer_journal import AnswerJournal
from headscope.evaluating.answering import Asking, Progress, ask_all, try_out
from headscope.evaluating.conditions import (
    Condition,
    conditions_of,
    refuse_inapplicable,
    without_impossible_controls,
)
from headscope.evaluating.evaluation_folder import EvaluationFolder
from headscope.evaluating.evaluation_plan import EvaluationOptions, make_evaluation_plan
from headscope.evaluating.result import Evaluation, result_of, write
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from headscope.evaluating.conditions import Edits
    from headscope.evaluating.task import Task
    from probes.inputs import Example
    from probes.subject import Subject

TASKS = ("chair", "pope")


def evaluate(
    subject: Subject,
    data: str | Path | Sequence[Example],
    task: str = "chair",
    edits: Edits = (),
    how: EvaluationOptions | None = None,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """How much a model makes up, with and without edits, on the same images.

    Args:
        data: a bundled set, a JSONL with ``image`` and ``objects`` (or, for POPE, ``question`` and
            an ``answer`` yes or no), or examples.
        task: ``chair`` (describe every image) or ``pope`` (yes/no questions about objects).
        edits: edits, methods, or texts such as ``"vhr:alpha=2"``, in a row or by name.
        how: `EvaluationOptions`, whose fields may be given one by one as well: ``controls=3,
            limit=100, vocabulary=...``.
        out: folder to write to as it goes; ``resume`` goes on with an unfinished one.
        progress: called with answers given, answers in all, prompts skipped.

    Raises:
        AskedWrongly: a model that does not see or not write, an unknown edit or task, data that do
            not say what is in the images.
        RunError: not one of the images can be read.
        RunError, RunLocked, DiskFull: ``out`` cannot be used.
        ValueError: data that cannot be read.
    """
    how = replace(how or EvaluationOptions(), **settings)
    if resume and out is None:
        raise AskedWrongly("`resume` needs `out`, the folder of the unfinished evaluation.")
    if task not in TASKS:
        raise AskedWrongly(f"The task must be one of {', '.join(TASKS)}, got {task!r}.")
    refuse_subject(subject)
    conditions = conditions_of(edits, how.controls, how.seed)
    for condition in conditions:
        if condition.kind == "edit":
            refuse_inapplicable(subject, condition)
    conditions, notes = without_impossible_controls(subject, conditions)
    examples, name, details = _read(subject, data, how.limit)
    made = _task(task, examples, how, details)
    asking = Asking(
        made.prompts,
        how.max_new_tokens or made.max_new_tokens,
        how.batch_size,
        made.probes,
        how.strict,
    )
    plan = make_evaluation_plan(subject, name, examples, made, conditions, asking, how)
    with _journals(out, plan, conditions, resume) as (folder, journals):
        started = time.monotonic()
        unfinished = [c for c in conditions if len(journals[c.name].chunks) < len(asking.chunks)]
        try_out(subject, asking, {c.name: c for c in unfinished})
        ask_all(subject, asking, {c.name: c for c in conditions}, journals, progress)
        found = result_of(made, conditions, journals, plan, notes, out)
        if folder is not None:
            write(found, folder, round(time.monotonic() - started, 3))
    return found


def refuse_subject(subject: Subject) -> None:
    """Nothing, if a subject reads images and writes text.

    Raises:
        AskedWrongly: it does not.
    """
    what = "hallucinated objects are found in what a vision-language model writes"
    if subject.kind != "vision-language":
        raise AskedWrongly(f"{subject.name!r} is a {subject.kind} model; {what}. Choose one.")
    if not subject.generates:
        raise AskedWrongly(f"{subject.name!r} writes no text; {what}. Choose one that does.")


def _read(
    subject: Subject, data: str | Path | Sequence[Example], limit: int | None
) -> tuple[list[Example], str, Mapping[str, Any]]:
    """All examples, the name of the data, and what the index says of a bundled set.

    Of the hub's data sets, which may be huge, only the first ``limit`` are read.
    """
    from probes.bundled import bundled_sets
    from probes.readers import read_examples

    if not isinstance(data, (str, Path)):
        given = list(data)
        ids = Counter(example.id for example in given)
        if ids and max(ids.values()) > 1:
            raise AskedWrongly(
                f"Every example must have an id of its own, {ids.most_common(1)[0][0]!r} stands "
                "for several. Rename them."
            )
        return given, "", {}
    name = str(data)
    known = bundled_sets().get(name)
    most = limit if name.startswith("hf:") else None
    examples = list(read_examples(data, subject.kind, most))
    return examples, name, {} if known is None else known.details


def _task(
    name: str, examples: Sequence[Example], how: EvaluationOptions, details: Mapping[str, Any]
) -> Task:
    from analysis.hallucination.vocabulary import Vocabulary
    from headscope.evaluating.chair_task import chair_task
    from headscope.evaluating.pope_task import pope_task

    words = how.vocabulary
    if words is None and "vocabulary" in details:
        words = Vocabulary.of(details["vocabulary"])
    if name == "chair":
        probe = how.probe or (tuple(details["probe"]) if "probe" in details else None)
        return chair_task(examples, how.limit, words, how.question, how.distinct, probe)
    question = how.question or details.get("pope_question", "")
    return pope_task(examples, how.limit, words, question, how.strict_answers, how.seed)


@contextmanager
def _journals(
    out: Path | None, plan: Mapping[str, Any], conditions: Sequence[Condition], resume: bool
) -> Iterator[tuple[EvaluationFolder | None, dict[str, AnswerJournal]]]:
    if out is None:
        yield None, {condition.name: AnswerJournal() for condition in conditions}
        return
    with EvaluationFolder.begin(out, plan, resume) as folder:
        yield folder, {c.name: folder.journal(number) for number, c in enumerate(conditions)}
