"""What an evaluation is going to do, written down before it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from analysis.hallucination.paired import REPLICATES
from headscope.batching import BATCH_SIZE
from headscope.evaluating.evaluation_folder import KIND, with_digest
from headscope.plan import AskedWrongly, inputs_name, model_record, versions

if TYPE_CHECKING:
    from analysis.hallucination.vocabulary import Vocabulary
    from headscope.evaluating.answering import Asking
    from headscope.evaluating.conditions import Condition
    from headscope.evaluating.task import Task
    from probes.inputs import Example
    from probes.subject import Subject


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        controls: norm-matched random-head controls per edit, with seeds from ``seed`` on.
        question: for CHAIR what is asked about every image, default the data's own question; for
            POPE how questions are worded, with ``{object}`` and ``{a}``.
        limit: use the first so many examples; vocabulary and frequencies are of all.
        max_new_tokens: default 128 for CHAIR (papers use 512), 8 for POPE.
        vocabulary: what counts as an object, with synonyms; default: what the data name.
        distinct: CHAIR counts each class once per caption; the published one counts mentions.
        strict_answers: POPE answers without yes or no are wrong; the published rule takes them for
            yes.
        probe: beginning of an answer and a continuation, with ``{field}`` for text fields of the
            example: the probability of the continuation is measured beside CHAIR.
        seed: of the bootstrap, the controls and POPE's random negatives.
        strict: raise at the first example that cannot be used, instead of leaving it out.
    """

    controls: int = 1
    question: str = ""
    limit: int | None = None
    batch_size: int = BATCH_SIZE
    max_new_tokens: int | None = None
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    distinct: bool = False
    strict_answers: bool = False
    probe: tuple[str, str] | None = None
    seed: int = 0
    replicates: int = REPLICATES
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_new_tokens", "replicates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = "--" + name.replace("_", "-")
                raise AskedWrongly(f"`{option}` must be at least 1, got {value}.")


def make_evaluation_plan(
    subject: Subject,
    name: str,
    examples: Sequence[Example],
    task: Task,
    conditions: Sequence[Condition],
    asking: Asking,
    how: EvaluationOptions,
) -> dict[str, Any]:
    """The plan; two evaluations with equal plans and no chance in the model say the same."""
    from analysis.run_files import SCHEMA
    from probes.readers import data_digest

    plan = {
        "schema": SCHEMA,
        "kind": KIND,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "model": model_record(subject),
        "device": str(subject.device),
        "data": {
            "name": name,
            "inputs": inputs_name(name),
            "n": len(examples),
            "digest": data_digest(examples),
        },
        "task": task.name,
        **task.about,
        "conditions": [condition.record() for condition in conditions],
        "prompts": len(asking.prompts),
        "limit": how.limit,
        "batch_size": asking.batch_size,
        "max_new_tokens": asking.max_new_tokens,
        "chunks": len(asking.chunks),
        "seed": how.seed,
        "replicates": how.replicates,
    }
    return with_digest(plan)
