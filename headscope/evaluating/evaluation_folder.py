"""The folder of an evaluation: its plan, the journals of its conditions, and what came out.

OUT/
  plan.json             written first, with a digest of all that decides about numbers
  journal/lock          held by the one process that writes
  answers/NN.jsonl      one line per chunk, for condition NN of the plan
  evaluation.parquet    answers.parquet
  manifest.json         written last: a folder without it is unfinished
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import drop_half_written, write_json, written_atomically
from analysis.journal import RunLock
from analysis.run_files import (
    JOURNAL,
    LOCK,
    MANIFEST,
    PLAN,
    SCHEMA,
    RunError,
    digests,
    plan_differences,
    read_json,
    refuse_foreign,
)
from headscope.evaluating.answer_journal import AnswerJournal

if TYPE_CHECKING:
    import pandas as pd

KIND = "evaluation"
TABLE, ANSWERS = "evaluation.parquet", "answers.parquet"
_CHUNKS = "answers"


class EvaluationFolder:
    """The writing side; held by one process at a time."""

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path, self.plan = path, plan

    @classmethod
    @contextmanager
    def begin(cls, path: Path, plan: Mapping[str, Any], resume: bool) -> Iterator[EvaluationFolder]:
        """A folder to write to, locked, with the plan in it.

        Nothing is ever deleted but halves of files that a killed process left, and nothing is
        written before all checks have passed.

        Raises:
            RunError: the folder holds something else, a finished evaluation, an unfinished one
                without ``resume``, or one with another plan. Without any answer it counts as empty.
            RunLocked: another process is writing it.
        """
        _refuse_foreign(path)
        with ExitStack() as stack:
            path.mkdir(parents=True, exist_ok=True)
            # Locked first: what a running process is about to write must not be judged.
            stack.enter_context(RunLock(path / JOURNAL / LOCK))
            if (path / PLAN).exists():
                _refuse_other(path, plan, resume)
            drop_half_written(path)
            if not answered(path):
                write_json(path / PLAN, plan)
            yield cls(path, plan)

    def journal(self, number: int) -> AnswerJournal:
        """The journal of a condition, by its place in the plan."""
        return AnswerJournal(self.path / _CHUNKS / f"{number:02d}.jsonl")

    def finish(
        self, table: pd.DataFrame, answers: pd.DataFrame, manifest: Mapping[str, Any]
    ) -> None:
        """Write the tables, then the manifest with the digests of all that is there."""
        for name, frame in ((TABLE, table), (ANSWERS, answers)):
            with written_atomically(self.path / name) as temporary:
                frame.to_parquet(temporary, index=False)
        write_json(
            self.path / MANIFEST,
            {"schema": SCHEMA, "kind": KIND, **manifest, "files": digests(self.path)},
        )


def with_digest(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with a digest of it; when, how and on which device it was started is left out."""
    from probes.readers.registry import content_digest

    deciding = {
        name: item for name, item in plan.items() if name not in ("created", "command", "device")
    }
    text = json.dumps(deciding, sort_keys=True, ensure_ascii=False)
    return {**plan, "digest": content_digest(text.encode())}


def is_evaluation(path: Path) -> bool:
    """Whether a folder holds an evaluation, finished or not."""
    return (path / PLAN).is_file() and read_json(path / PLAN).get("kind") == KIND


def answered(path: Path) -> int:
    """How many chunks were answered, under all conditions together."""
    files = sorted((path / _CHUNKS).glob("*.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def _refuse_foreign(path: Path) -> None:
    refuse_foreign(path, {JOURNAL})
    if (path / PLAN).exists() and not is_evaluation(path):
        raise RunError(f"{path} holds a run of another kind. Choose another `--out`.")


def _refuse_other(path: Path, plan: Mapping[str, Any], resume: bool) -> None:
    if (path / MANIFEST).exists():
        raise RunError(
            f"{path} holds a finished evaluation. Look at it with `headscope show {path}`, or "
            "choose another `--out`."
        )
    if not answered(path):
        return  # it never got to its first answer: there is nothing to lose
    if not resume:
        raise RunError(
            f"{path} holds an unfinished evaluation. Add `--resume` to go on with it, or choose "
            "another `--out`."
        )
    old = read_json(path / PLAN)
    if old.get("digest") != plan.get("digest"):
        differences = [d for d in plan_differences(old, plan) if not d.startswith("digest ")]
        raise RunError(
            f"The evaluation in {path} has another plan: {'; '.join(differences)}. "
            "Resume with what it was started with, or choose another `--out`."
        )
