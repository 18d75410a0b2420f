"""CHAIR as a task: describe every image, count the objects that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import TYPE_CHECKING, Any

from headscope.evaluating.ground_truth import (
    default_vocabulary,
    objects_of,
    partner_of,
    unknown_objects,
    vocabulary_digest,
    with_images,
    with_truth,
)
from headscope.plan import AskedWrongly
from probes.prompts import DESCRIBE

if TYPE_CHECKING:
    from analysis.hallucination.chair import Judged, Ratio
    from analysis.hallucination.sheet import Metric, Sheet
    from analysis.hallucination.vocabulary import Vocabulary
    from headscope.evaluating.answer_journal import Answer
    from probes.inputs import Example

MAX_NEW_TOKENS = 128
_UNITS = {
    "unfinished": "share of captions",
    "absent_partner_probability": "probability",
    "present_partner_probability": "probability",
    "continuation_probability": "probability",
}


@dataclass(frozen=True)
class ChairTask:
    """See `headscope.evaluating.task.Task`; made by `chair_task`."""

    examples: Mapping[str, Example]
    prompts: Sequence[Example]
    vocabulary: Vocabulary
    distinct: bool
    about: Mapping[str, Any]
    notes: Sequence[str]
    skipped: Sequence[dict[str, str]]
    probes: Mapping[str, tuple[str, str]]
    name: str = "chair"
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def units(self) -> Mapping[str, str]:
        from analysis.hallucination.chair import UNITS

        return UNITS | _UNITS

    @property
    def averages(self) -> Mapping[Metric, Sequence[Metric]]:
        return {}

    def sheet(self, answers: Mapping[str, Answer]) -> Sheet:
        from analysis.hallucination.sheet import Sheet

        rows = {name: self._row(name, answer) for name, answer in answers.items()}
        return Sheet.of(
            {name: {(key, ""): ratio for key, ratio in row.items()} for name, row in rows.items()}
        )

    def verdicts(self, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        found = []
        for name, answer in answers.items():
            judged = self._judged(name, answer)
            found.append(
                {
                    "id": name,
                    "answer": answer.text,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "mentioned": [mention.kind for mention in judged.mentions],
                    "hallucinated": [mention.kind for mention in judged.hallucinated],
                    "hallucinated_at": [[m.start, m.end] for m in judged.hallucinated],
                    "there": sorted(judged.there),
                    "log_probability": answer.log_probability,
                }
            )
        return found

    def _judged(self, name: str, answer: Answer) -> Judged:
        from analysis.hallucination.chair import judge

        there = objects_of(self.examples[name], self.vocabulary)
        return judge(answer.text, there, self.vocabulary)

    def _row(self, name: str, answer: Answer) -> dict[str, Ratio]:
        from analysis.hallucination.chair import chair_values, partner_values

        judged = self._judged(name, answer)
        row = chair_values(judged, self.distinct)
        row["unfinished"] = (float(not answer.ended), 1)
        partner, probed = partner_of(self.examples[name]), "continuation"
        if partner is not None:
            row |= partner_values(judged, *partner, self.vocabulary, self.distinct)
            probed = "present_partner" if partner[1] else "absent_partner"
        if answer.log_probability is not None:
            row[f"{probed}_probability"] = (exp(answer.log_probability), 1)
        return row


def chair_task(
    examples: Sequence[Example],
    limit: int | None,
    vocabulary: Vocabulary | None,
    question: str = "",
    distinct: bool = False,
    probe: tuple[str, str] | None = None,
) -> ChairTask:
    """Describe those of the first ``limit`` examples that have an image and say what is in it.

    Args:
        examples: all of the data, from which the default vocabulary is made.
        vocabulary: what counts as an object; default: what the data name.
        question: asked about every image; default: the example's own, else `DESCRIBE`.
        probe: beginning of an answer and continuation, in which ``{field}`` stands for a field of
            the example; without it, the example's own fields ``probe`` and ``continuation``.

    Raises:
        AskedWrongly: no example has an image, or says which objects are there, or the vocabulary
            knows none of them; a probe that names a field which is not there.
    """
    chosen, skipped = with_truth(*with_images(examples, limit))
    words = vocabulary or default_vocabulary(chosen, examples)
    probes = {e.id: found for e in chosen if (found := _probe(e, probe)) is not None}
    about = {
        "question": question or "each example's own",
        "distinct": distinct,
        "vocabulary": vocabulary_digest(words),
        "probe": list(probe) if probe else "each example's own" if probes else "none",
    }
    return ChairTask(
        {example.id: example for example in chosen},
        [_prompt(example, question) for example in chosen],
        words,
        distinct,
        about,
        unknown_objects(chosen, words),
        skipped,
        probes,
    )


def _prompt(example: Example, question: str) -> Example:
    if question:
        return replace(example, text=None, question=question, answer=None)
    return replace(example, question=example.question or DESCRIBE, answer=None)


def _probe(example: Example, templates: tuple[str, str] | None) -> tuple[str, str] | None:
    if templates is None:
        begin, then = example.extra.get("probe"), example.extra.get("continuation")
        return (begin, then) if isinstance(begin, str) and isinstance(then, str) else None
    fields = {name: value for name, value in example.extra.items() if isinstance(value, str)}
    try:
        return templates[0].format(**fields), templates[1].format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise AskedWrongly(
            f"A probe may hold names of text fields in braces, {error} is none of example "
            f"{example.id!r}. It has {', '.join(fields) or 'none'}."
        ) from error
