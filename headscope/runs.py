"""Score data into a run folder: plan, shards, tables, manifest; interrupted and taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.batching import batches
from headscope.plan import Options, make_plan
from headscope.scoring import (
    chosen_measures,
    named_measures,
    new_engine,
    refuse_inapplicable,
    score_batch,
)

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.run_folder import Run, RunFolder
    from analysis.scores import BatchScores
    from probes.inputs import Example
    from probes.subject import Subject

Progress = Callable[[int, int, int], None]
"""Called with examples done (skipped ones included), examples in all, examples skipped."""


def score_run(
    subject: Subject,
    data: str,
    out: Path,
    how: Options | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Score data into the run folder ``out`` and open it.

    Shards are recorded as they finish. After a crash, Ctrl-C or a full disk the same call with
    ``resume=True`` goes on after the last one, and gives the table of an undisturbed run.

    Raises:
        RunError, RunLocked: ``out`` cannot be used as asked.
        DiskFull: no room is left; finished shards are safe.
        ValueError: a measure or the data cannot be used; with ``how.strict``, any example.
    """
    from analysis.run_folder import RunFolder, open_run

    how = how or Options()
    measures = chosen_measures(how.measures)
    engine = new_engine(subject, measures)
    examples, unfit = read_all(subject, data, how)
    _refuse_inapplicable(subject, engine, examples, how)
    plan = make_plan(subject, data, examples, [measure.name for measure in measures], how)
    with RunFolder.begin(out, plan, resume) as folder:
        started = time.monotonic()
        _score_shards(subject, engine, examples, folder, how, progress)
        _finish(subject, folder, examples, unfit, time.monotonic() - started)
    return open_run(out)


def read_all(
    subject: Subject, data: str, how: Options
) -> tuple[list[Example], list[dict[str, str]]]:
    """The examples of data that fit the subject, and those that do not, with the reason."""
    from probes.readers import read_examples

    unfit: list[dict[str, str]] = []
    note = _note(unfit, how.strict)
    return list(read_examples(data, subject.kind, how.limit, note)), unfit


def _refuse_inapplicable(
    subject: Subject, engine: Engine, examples: Sequence[Example], how: Options
) -> None:
    """Score one batch before anything is written, if measures were asked for by name."""
    from analysis.tally import Tally

    named = named_measures(how.measures)
    if named:
        for batch in batches(subject, examples, how.batch_size, lambda example, reason: None):
            tally = Tally(replicates=1)
            tally.add(score_batch(subject, engine, batch))
            refuse_inapplicable(named, tally, subject.name)
            return


def _score_shards(
    subject: Subject,
    engine: Engine,
    examples: Sequence[Example],
    folder: RunFolder,
    how: Options,
    progress: Progress | None,
) -> None:
    size, total = int(folder.plan["shard_size"]), len(examples)
    finished = set(folder.journal.finished())
    done = sum(min(size, total - shard * size) for shard in finished)
    skipped_before = sum(len(folder.journal.about(s)["skipped"]) for s in sorted(finished))

    def report(extra: int, skipped: int) -> None:
        if progress is not None:
            progress(done + extra, total, skipped_before + skipped)

    report(0, 0)
    for shard in range(int(folder.plan["shards"])):
        if shard in finished:
            continue
        skipped: list[dict[str, str]] = []
        parts: list[BatchScores] = []
        note = _note(skipped, how.strict)
        mine = examples[shard * size : (shard + 1) * size]
        for batch in batches(subject, mine, how.batch_size, note):
            parts.append(score_batch(subject, engine, batch))
            report(sum(len(part.examples) for part in parts) + len(skipped), len(skipped))
        _record(folder, shard, parts, skipped)
        done += len(mine)
        skipped_before += len(skipped)
        report(0, 0)


def _record(
    folder: RunFolder, shard: int, parts: Sequence[BatchScores], skipped: list[dict[str, str]]
) -> None:
    from analysis.scores import BatchScores

    if not parts:
        folder.journal.write(shard, {}, {"scores": None, "skipped": skipped})
        return
    tensors, about = BatchScores.merge(parts).to_tensors()
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    folder.journal.write(shard, arrays, {"scores": about, "skipped": skipped})


def _finish(
    subject: Subject,
    folder: RunFolder,
    examples: Sequence[Example],
    unfit: list[dict[str, str]],
    seconds: float,
) -> None:
    from analysis.run_folder import RunError
    from analysis.tally import tally_of
    from headscope.kept_examples import keep_examples

    journal = folder.journal
    skipped = [item for s in journal.finished() for item in journal.about(s)["skipped"]]
    tally = tally_of(journal, folder.plan)
    if not tally.examples:
        raise RunError(
            f"None of the {len(examples)} examples could be scored; the first: "
            f"{skipped[0]['reason']}"
        )
    bad = {item["id"] for item in skipped}
    keep_examples(folder.path, subject, [e for e in examples if e.id not in bad])
    plan = folder.plan
    heads = tally.heads(plan["data"]["inputs"], plan["layers"], plan["measures"])
    folder.finish(
        heads,
        tally.profiles(),
        {
            "n": tally.examples,
            "skipped": unfit + skipped,
            "measures": heads.measures,
            "not_measured": tally.not_measured,
            "refused": [
                {"path": refusal.path, "reason": refusal.reason}
                for refusal in subject.layout.refusals
            ],
            "reliability": tally.reliability(),
            "elapsed_seconds": round(seconds, 3),
        },
    )


def _note(skipped: list[dict[str, Any]], strict: bool) -> Callable[[Example, str], None]:
    def note(example: Example, reason: str) -> None:
        if strict:
            raise ValueError(
                f"Example {example.id!r} cannot be scored: {reason} Leave out `--strict` to go "
                "on without it."
            )
        skipped.append({"id": example.id, "reason": reason})

    return note
