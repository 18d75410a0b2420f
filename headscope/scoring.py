"""Score the heads of a subject on batches or data: ``hs.score``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.batching import BATCH_SIZE, batches
from headscope.plan import AskedWrongly, Options, inputs_name

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.head_table import HeadTable
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from probes.inputs import Batch, Example
    from probes.subject import Subject


def score(
    subject: Subject,
    inputs: Batch | Iterable[Batch] | str | Path,
    measures: str | Sequence[str] = "all",
    *,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    replicates: int = 200,
    strict: bool = False,
) -> HeadTable:
    """The head table of a subject on some inputs, in one forward per batch.

    Args:
        subject: from `hs.load`.
        inputs: a batch, several batches, or data: the name of a bundled set, a folder of images,
            a text file, a JSONL.
        measures: ``"all"`` (every streaming measure that applies) or names, as a list or
            separated by commas.
        limit: read at most so many examples of data.
        batch_size: examples per forward, for data.
        seed: of the bootstrap; values do not depend on it.
        replicates: of the bootstrap.
        strict: raise at the first example that cannot be used, instead of leaving it out.

    Returns:
        Values with 95 % intervals over examples, and each measure's null.

    Raises:
        ValueError: an unknown measure, or one that was named and applies nowhere in this model;
            data that cannot be read; NaN or infinity in the model, tower and layer named.
    """
    from analysis.tally import Tally

    how = Options("all", limit, batch_size, seed, replicates, strict)
    chosen = chosen_measures(measures)
    named = named_measures(measures)
    engine = new_engine(subject, chosen)
    tally = Tally(replicates=replicates, seed=seed)
    name = inputs_name(str(inputs)) if isinstance(inputs, (str, Path)) else ""
    reasons: list[str] = []
    for batch in _batches_of(subject, inputs, how, reasons):
        tally.add(score_batch(subject, engine, batch))
        if named:
            refuse_inapplicable(named, tally, subject.name)
            named = []
    if not tally.examples:
        raise ValueError(
            f"No example could be scored: {reasons[0]}" if reasons else "There was no batch."
        )
    layers = {tower: found.layers for tower, found in subject.towers.items()}
    return tally.heads(name, layers, [measure.name for measure in chosen])


def chosen_measures(measures: str | Sequence[str]) -> list[Any]:
    """The measures that were asked for.

    Raises:
        AskedWrongly: a name is unknown.
    """
    from analysis.measures import select_measures

    try:
        return list(select_measures(_names(measures)))
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def named_measures(measures: str | Sequence[str]) -> list[str]:
    """Names of measures that were asked for one by one, beside or instead of ``"all"``."""
    return [name for name in _names(measures) if name != "all"]


def _names(measures: str | Sequence[str]) -> list[str]:
    names = measures.split(",") if isinstance(measures, str) else measures
    return [name.strip() for name in names if name.strip()]


def new_engine(subject: Subject, measures: Sequence[Any]) -> Engine:
    """An engine for a subject.

    Raises:
        LoadError: the subject has no attention that can be captured, or its weights hold NaN or
            infinity; the sentence names tower and layer.
    """
    from analysis.engine import Engine

    if subject.towers:
        subject.check_weights()
    return Engine(subject.layout, measures)


def score_batch(subject: Subject, engine: Engine, batch: Batch) -> BatchScores:
    """Per-example sums of one batch."""
    from probes.listening import listen

    engine.start_batch(batch.tokens, [example.id for example in batch.examples])
    with listen(subject, batch, engine.listener):
        subject.forward(batch)
    return engine.finish_batch()


def refuse_inapplicable(named: Iterable[str], tally: Tally, model: str) -> None:
    """Raise if a measure that was asked for by name was measured nowhere.

    Batches come richest first, so the first one shows what applies.
    """
    reasons = {entry["measure"]: entry["reason"] for entry in tally.not_measured}
    for name in named:
        if name not in tally.measures:
            why = reasons.get(name, "nothing in this data calls for it.")
            raise AskedWrongly(f"Measure {name!r} does not apply to {model}: {why}")


def _batches_of(subject: Subject, inputs: Any, how: Options, reasons: list[str]) -> Iterator[Batch]:
    from probes.inputs import Batch

    if isinstance(inputs, (str, Path)):
        from probes.readers import read_examples

        def skip(example: Example, reason: str) -> None:
            if how.strict:
                raise ValueError(f"Example {example.id!r} cannot be scored: {reason}")
            reasons.append(reason)

        examples = list(read_examples(inputs, subject.kind, how.limit, skip))
        yield from batches(subject, examples, how.batch_size, skip)
        return
    seen: set[str] = set()
    for number, batch in enumerate([inputs] if isinstance(inputs, Batch) else inputs):
        if not isinstance(batch, Batch):
            raise TypeError(
                f"`inputs` must be batches from subject.prepare(...) or data, got "
                f"{type(batch).__name__}. Pass one of those."
            )
        ids = [example.id for example in batch.examples]
        if seen.intersection(ids):
            # Batches of plain tensors and texts count their examples from 0 each.
            renamed = [replace(e, id=f"{number}:{e.id}") for e in batch.examples]
            batch = replace(batch, examples=tuple(renamed))
        seen.update(ids)
        yield batch
