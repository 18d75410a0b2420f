"""Score data into a run folder: plan, shards, tables, manifest; interrupted and taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.batching import batches
from headscope.plan import Options, make_plan
from headscope.scorer import Scorer
from headscope.scoring import refuse_inapplicable, score_batch

if TYPE_CHECKING:
    from analysis.progress import Listener, Progress
    from analysis.run_folder import Run, RunFolder
    from analysis.scores import BatchScores
    from probes.inputs import Example
    from probes.subject import Subject


def score_run(
    subject: Subject,
    data: str,
    out: Path,
    how: Options | None = None,
    *,
    resume: bool = False,
    progress: Listener | None = None,
) -> Run:
    """Score data into the run folder ``out`` and open it.

    Shards are recorded as they finish. After a crash, Ctrl-C or a full disk the same call with
    ``resume=True`` goes on after the last one, and gives the table of an undisturbed run.

    Args:
        progress: called whenever a stage of the work begins, gets on or ends.

    Raises:
        RunError, RunLocked: ``out`` cannot be used as asked.
        DiskFull: no room is left; finished shards are safe.
        ValueError: a measure or the data cannot be used; with ``how.strict``, any example.
    """
    from analysis.progress import Progress
    from analysis.run_folder import RunFolder, open_run

    how = how or Options()
    scorer = Scorer.make(subject, how)
    examples, unfit = read_all(subject, data, how)
    _refuse_inapplicable(scorer, examples, how)
    scorer.refuse(lambda: batches(subject, examples, how.batch_size, _ignored))
    measures = [measure.name for measure in scorer.measures]
    studies = [study.name for study in scorer.studies]
    plan = make_plan(subject, data, examples, measures, studies, how)
    with RunFolder.begin(out, plan, resume) as folder:
        started = time.monotonic()
        told = Progress(progress, len(examples))
        scorer.begin(lambda: batches(subject, examples, how.batch_size, _ignored), told)
        _score_shards(scorer, examples, folder, how, told)
        _finish(scorer, folder, examples, unfit, how, started, told)
    return open_run(out)


def read_all(
    subject: Subject, data: str, how: Options
) -> tuple[list[Example], list[dict[str, str]]]:
    """The examples of data that fit the subject, and those that do not, with the reason."""
    from probes.readers import read_examples

    unfit: list[dict[str, str]] = []
    note = _note(unfit, how.strict)
    return list(read_examples(data, subject.kind, how.limit, note)), unfit


def _refuse_inapplicable(scorer: Scorer, examples: Sequence[Example], how: Options) -> None:
    """Score one batch before anything is written, if measures were asked for by name."""
    from analysis.tally import Tally

    if scorer.named and scorer.engine is not None:
        for batch in batches(scorer.subject, examples, how.batch_size, _ignored):
            tally = Tally(replicates=1)
            tally.add(score_batch(scorer.subject, scorer.engine, batch))
            refuse_inapplicable(scorer.named, tally, scorer.subject.name)
            return


def _score_shards(
    scorer: Scorer,
    examples: Sequence[Example],
    folder: RunFolder,
    how: Options,
    progress: Progress,
) -> None:
    size, total = int(folder.plan["shard_size"]), len(examples)
    finished = set(folder.journal.finished())
    done = sum(min(size, total - shard * size) for shard in finished)
    skipped_before = sum(len(folder.journal.about(s)["skipped"]) for s in sorted(finished))
    stage = progress.stage("examples", total, done=done)
    stage.reach(done, skipped_before)
    for shard in range(int(folder.plan["shards"])):
        if shard in finished:
            continue
        skipped: list[dict[str, str]] = []
        parts: list[BatchScores] = []
        note = _note(skipped, how.strict)
        mine = examples[shard * size : (shard + 1) * size]
        for batch in batches(scorer.subject, mine, how.batch_size, note):
            parts += scorer.score_readable(batch, note)
            scored = sum(len(part.examples) for part in parts)
            stage.reach(done + scored + len(skipped), skipped_before + len(skipped))
        _record(folder, shard, parts, skipped, scorer.study_measures)
        done += len(mine)
        skipped_before += len(skipped)
        stage.reach(done, skipped_before)
    stage.end()


def _record(
    folder: RunFolder,
    shard: int,
    parts: Sequence[BatchScores],
    skipped: list[dict[str, str]],
    study_measures: Mapping[str, list[str]],
) -> None:
    from analysis.scores import BatchScores

    about: dict[str, Any] = {"scores": None, "skipped": skipped, "studies": dict(study_measures)}
    if not parts:
        folder.journal.write(shard, {}, about)
        return
    tensors, about["scores"] = BatchScores.merge(parts).to_tensors()
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    folder.journal.write(shard, arrays, about)


def _finish(
    scorer: Scorer,
    folder: RunFolder,
    examples: Sequence[Example],
    unfit: list[dict[str, str]],
    how: Options,
    started: float,
    progress: Progress,
) -> None:
    from analysis.run_folder import RunError
    from analysis.tally import tally_of
    from headscope.importance_section import study_measures_of, write_sections
    from headscope.kept_examples import keep_examples

    subject, journal = scorer.subject, folder.journal
    skipped = [item for s in journal.finished() for item in journal.about(s)["skipped"]]
    tally = tally_of(journal, folder.plan)
    if not tally.examples:
        raise RunError(
            f"None of the {len(examples)} examples could be scored; the first: "
            f"{skipped[0]['reason']}"
        )
    bad = {item["id"] for item in skipped}
    good = [e for e in examples if e.id not in bad]
    keep_examples(folder.path, subject, good)
    if scorer.studies:
        write_sections(scorer, folder, tally, good, how, replace(progress, examples=len(good)))
    plan = folder.plan
    costly = {name for names in study_measures_of(journal).values() for name in names}
    streaming = tally.measures - costly
    heads = tally.heads(plan["data"]["inputs"], plan["layers"], plan["measures"], streaming)
    folder.finish(
        heads,
        tally.profiles(),
        {
            "n": tally.examples,
            "skipped": unfit + skipped,
            "measures": heads.measures,
            "studies": study_measures_of(journal),
            "not_measured": tally.not_measured,
            "refused": [
                {"path": refusal.path, "reason": refusal.reason}
                for refusal in subject.layout.refusals
            ],
            "reliability": tally.reliability(),
            "elapsed_seconds": round(time.monotonic() - started, 3),
        },
    )


def _ignored(example: Example, reason: str) -> None:
    """What cannot be prepared is counted when its shard is scored."""


def _note(skipped: list[dict[str, Any]], strict: bool) -> Callable[[Example, str], None]:
    def note(example: Example, reason: str) -> None:
        if strict:
            raise ValueError(
                f"Example {example.id!r} cannot be scored: {reason} Leave out `--strict` to go "
                "on without it."
            )
        skipped.append({"id": example.id, "reason": reason})

    return note
