"""What an evaluation found: tables, reports and notes, and the same read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.evaluating.answer_journal import AnswerJournal
from headscope.evaluating.conditions import Condition
from headscope.evaluating.evaluation_folder import (
    ANSWERS,
    TABLE,
    EvaluationFolder,
    answered,
    is_evaluation,
)

if TYPE_CHECKING:
    import pandas as pd

    from headscope.evaluating.task import Task


@dataclass(frozen=True)
class Evaluation:
    """What came out; its text is the table.

    Attributes:
        frame: one line per edit and metric: ``task edit kind seed metric split unit value ci_low
            ci_high difference difference_ci_low difference_ci_high beyond_control ... n``. ``kind``
            is baseline, edit or control (random heads; ``seed`` -1: all seeds pooled).
            ``difference`` is to the baseline, ``beyond_control`` to the pooled control, both within
            the same examples.
        answers: what was said under each condition, and what is wrong with it.
        reports: what each edit did: ``edit kind seed fired touched``.
        notes: what a reader of the numbers should know.
        skipped: examples that could not be used: id and reason.
        path: the folder, if it was written to one.
    """

    frame: pd.DataFrame
    answers: pd.DataFrame
    reports: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    skipped: Sequence[Mapping[str, str]]
    plan: Mapping[str, Any]
    path: Path | None = None

    @property
    def images(self) -> int:
        """How many images were asked about."""
        counted = ~self.frame["metric"].str.startswith("time_")  # those are of batches
        return int(self.frame["n"][counted & (self.frame["kind"] == "baseline")].max())

    def __repr__(self) -> str:
        from headscope.evaluating.summary import as_text

        return as_text(self)


def result_of(
    task: Task,
    conditions: Sequence[Condition],
    journals: Mapping[str, AnswerJournal],
    plan: Mapping[str, Any],
    notes: Sequence[str],
    out: Path | None,
) -> Evaluation:
    """What full journals say.

    Raises:
        RunError: not one prompt could be asked, such as where no image decodes.
    """
    from analysis.run_files import RunError
    from headscope.evaluating.tables import answers_frame, evaluation_frame, reports_of

    skipped = [*task.skipped, *journals[conditions[0].name].skipped]
    if not any(journal.answered for journal in journals.values()):
        raise RunError(
            f"None of the {len(task.prompts)} prompts could be asked; the first: "
            f"{skipped[0]['reason'] if skipped else 'there was none'}"
        )
    reports = reports_of(conditions, journals)
    return Evaluation(
        evaluation_frame(
            task, conditions, journals, seed=plan["seed"], replicates=plan["replicates"]
        ),
        answers_frame(task, conditions, journals),
        reports,
        [*notes, *task.notes, *_untouched(reports)],
        skipped,
        plan,
        out,
    )


def write(found: Evaluation, folder: EvaluationFolder, elapsed_seconds: float) -> None:
    """Finish the folder of an evaluation."""
    folder.finish(
        found.frame,
        found.answers,
        {
            "n": found.images,
            "reports": list(found.reports),
            "notes": list(found.notes),
            "skipped": list(found.skipped),
            "elapsed_seconds": elapsed_seconds,
        },
    )


def open_evaluation(path: str | Path) -> Evaluation:
    """A finished evaluation from its folder, with no model.

    Raises:
        RunError: there is none, or it is unfinished.
    """
    import pandas as pd

    from analysis.run_files import MANIFEST, PLAN, RunError, read_json

    folder = Path(path).expanduser()
    if not is_evaluation(folder):
        raise RunError(f"{str(path)!r} is not the folder of an evaluation. Check the path.")
    if not (folder / MANIFEST).exists():
        raise RunError(
            f"The evaluation in {folder} is unfinished ({answered(folder)} chunks of answers). "
            "Go on with the command that started it and `--resume`."
        )
    manifest = read_json(folder / MANIFEST)
    return Evaluation(
        pd.read_parquet(folder / TABLE),
        pd.read_parquet(folder / ANSWERS),
        manifest["reports"],
        manifest["notes"],
        manifest["skipped"],
        read_json(folder / PLAN),
        folder,
    )


def _untouched(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{report['edit']} changed nothing here (touched 0), so its differences are those of "
        "running the same twice."
        for report in reports
        if report["kind"] == "edit" and not report["touched"]
    ]
