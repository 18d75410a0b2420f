"""POPE as a task: is there an X in the image, for objects that are there and that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.evaluating.ground_truth import (
    default_vocabulary,
    objects_of,
    partner_of,
    truth_of,
    unknown_objects,
    vocabulary_digest,
    with_images,
)
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from analysis.hallucination.chair import Ratio
    from analysis.hallucination.pope_questions import Poll, PopeQuestion
    from analysis.hallucination.sheet import Metric, Sheet
    from analysis.hallucination.vocabulary import Vocabulary
    from headscope.evaluating.answer_journal import Answer
    from probes.inputs import Example

MAX_NEW_TOKENS = 8
GIVEN, MEAN, PARTNER = "given", "mean", "partner"
_OF_ABSENT = ("accuracy", "yes_ratio", "unclear")
"""What can be said of a split in which nothing that is asked for is there."""


@dataclass(frozen=True)
class Asked:
    """One question of one split.

    Attributes:
        prompt_id: whose answer counts; splits share the answers of questions that they share.
        image: what is resampled: questions about one image stand or fall together.
    """

    prompt_id: str
    image: str
    split: str
    there: bool


@dataclass(frozen=True)
class PopeTask:
    """See `headscope.evaluating.task.Task`; made by `pope_task`."""

    prompts: Sequence[Example]
    asked: Sequence[Asked]
    strict_answers: bool
    about: Mapping[str, Any]
    notes: Sequence[str]
    skipped: Sequence[dict[str, str]]
    name: str = "pope"
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def probes(self) -> Mapping[str, tuple[str, str]]:
        return {}

    @property
    def units(self) -> Mapping[str, str]:
        from analysis.hallucination.pope import UNITS

        return UNITS

    @property
    def averages(self) -> Mapping[Metric, Sequence[Metric]]:
        """Over the splits with yes and no, as papers do."""
        splits = [s for s in dict.fromkeys(item.split for item in self.asked) if s != PARTNER]
        if len(splits) < 2:
            return {}
        return {(name, MEAN): [(name, split) for split in splits] for name in self.units}

    def sheet(self, answers: Mapping[str, Answer]) -> Sheet:
        from analysis.hallucination.pope import parse_answer, pope_values
        from analysis.hallucination.sheet import Sheet

        said = {
            name: parse_answer(answer.text, self.strict_answers) for name, answer in answers.items()
        }
        groups: dict[str, dict[str, list[Any]]] = {}
        for item in self.asked:
            if item.prompt_id in said:
                splits = groups.setdefault(item.image, {})
                splits.setdefault(item.split, []).append((item.there, said[item.prompt_id]))
        with_yes = {item.split for item in self.asked if item.there}
        rows: dict[str, dict[Metric, Ratio]] = {
            image: {
                (metric, split): ratio
                for split, pairs in splits.items()
                for metric, ratio in pope_values(pairs).items()
                if split in with_yes or metric in _OF_ABSENT
            }
            for image, splits in groups.items()
        }
        return Sheet.of(rows)

    def verdicts(self, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        from analysis.hallucination.pope import parse_answer

        questions = {prompt.id: prompt.prompt or "" for prompt in self.prompts}
        found = []
        for item in self.asked:
            answer = answers.get(item.prompt_id)
            if answer is not None:
                said = parse_answer(answer.text, self.strict_answers)
                found.append(
                    {
                        "id": item.prompt_id,
                        "image": item.image,
                        "split": item.split,
                        "question": questions[item.prompt_id],
                        "there": item.there,
                        "answer": answer.text,
                        "yes": said.yes,
                        "clear": said.clear,
                    }
                )
        return found


def pope_task(
    examples: Sequence[Example],
    limit: int | None,
    vocabulary: Vocabulary | None,
    question: str = "",
    strict_answers: bool = False,
    seed: int = 0,
) -> PopeTask:
    """Questions about those of the first ``limit`` examples that have an image.

    Where examples are yes/no questions themselves (``question`` and ``answer``, or ``text`` and
    ``label`` as in POPE's own files), these are asked; their field ``split`` parts them. Otherwise
    questions are made from ``objects``, with the frequencies of all data; where examples say that
    their cue's partner is absent, it is asked for too.

    Args:
        question: how a question is worded, see `analysis.hallucination.pope_questions.wording`.
        seed: of the random negatives.

    Raises:
        AskedWrongly: no example has an image, or is a question or says which objects are there.
    """
    chosen, skipped = with_images(examples, limit)
    if any(truth_of(example) is not None for example in chosen):
        if question:
            raise AskedWrongly(
                "`--question` words questions that are made from objects, but these data are "
                "questions themselves. Leave it out."
            )
        return _given(chosen, skipped, strict_answers)
    return _made(chosen, skipped, examples, vocabulary, question, strict_answers, seed)


def _given(
    chosen: Sequence[Example], skipped: list[dict[str, str]], strict_answers: bool
) -> PopeTask:
    prompts, asked = [], []
    for example in chosen:
        there = truth_of(example)
        if there is None:
            skipped.append({"id": example.id, "reason": "it is no question with yes or no"})
            continue
        prompts.append(replace(example, answer=None))
        split = str(example.extra.get("split") or GIVEN)
        asked.append(Asked(example.id, _image_name(example), split, there))
    about = {"question": "given", "strict_answers": strict_answers}
    return PopeTask(prompts, asked, strict_answers, about, [], skipped)


def _made(
    chosen: Sequence[Example],
    skipped: list[dict[str, str]],
    examples: Sequence[Example],
    vocabulary: Vocabulary | None,
    question: str,
    strict_answers: bool,
    seed: int,
) -> PopeTask:
    from analysis.hallucination.pope_questions import (
        TEMPLATE,
        object_statistics,
        pope_questions,
        wording,
    )

    words, template = vocabulary or default_vocabulary(chosen, examples), question or TEMPLATE
    try:
        wording("object", template)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error
    notes = unknown_objects(chosen, words)
    statistics = object_statistics({e.id: objects_of(e, words) for e in examples})
    poll = pope_questions({e.id: objects_of(e, words) for e in chosen}, statistics, seed=seed)
    questions = [*poll.questions, *_about_partners(chosen, words)]
    by_id = {example.id: example for example in chosen}
    prompts = {
        _prompt_id(item): replace(
            by_id[item.image_id],
            id=_prompt_id(item),
            text=None,
            question=wording(item.kind, template),
            answer=None,
        )
        for item in questions
    }
    asked = [Asked(_prompt_id(q), q.image_id, q.split, q.there) for q in questions]
    about = {
        "question": template,
        "strict_answers": strict_answers,
        "vocabulary": vocabulary_digest(words),
        "kinds": len(statistics.popularity),
    }
    notes += _notes(poll)
    return PopeTask(list(prompts.values()), asked, strict_answers, about, notes, skipped)


def _about_partners(examples: Sequence[Example], vocabulary: Vocabulary) -> list[PopeQuestion]:
    from analysis.hallucination.pope_questions import PopeQuestion

    pairs = [(example, partner_of(example)) for example in examples]
    kinds = [
        (example.id, vocabulary.kind_of(found[0]))
        for example, found in pairs
        if found is not None and not found[1]
    ]
    return [PopeQuestion(name, PARTNER, kind, False) for name, kind in kinds if kind is not None]


def _notes(poll: Poll) -> list[str]:
    found = []
    negatives = {
        split: sum(q.split == split and not q.there for q in poll.questions)
        for split in poll.fallbacks
    }
    for split, count in poll.fallbacks.items():
        if count:
            found.append(
                f"{count} of {negatives[split]} absent objects of the {split} split were drawn at "
                "random, because none was left that is ever seen beside the present one."
            )
    if poll.short:
        found.append(
            f"{poll.short} images hold nearly every kind of object, so fewer absent ones than "
            "present ones were asked for."
        )
    return found


def _prompt_id(question: PopeQuestion) -> str:
    return f"{question.image_id}?{question.kind}"


def _image_name(example: Example) -> str:
    first = example.pictures[0]
    return str(first) if isinstance(first, (str, Path)) else example.id
