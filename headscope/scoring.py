"""Score the heads of a subject on batches or data: ``hs.score``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.batching import BATCH_SIZE, Skip, batches
from headscope.plan import AskedWrongly, Options, inputs_name

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.head_table import HeadTable
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from probes.inputs import Batch, Example
    from probes.subject import Subject

_REASONS_SHOWN = 3


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
    effect: str | Sequence[str] = "",
    ablation: str = "mean",
    label: str = "",
    draws: int = 5,
    copies: int = 1,
    graddrop: bool = False,
    image_removal: str = "delete",
    answers: str = "auto",
) -> HeadTable:
    """The head table of a subject on some inputs.

    Streaming measures take one forward per batch. Costly groups run the model more often and are
    named: ``importance`` and the other studies of `analysis.importance`.

    Args:
        subject: from `hs.load`.
        inputs: a batch, several batches, or data: the name of a bundled set, a folder of images,
            a text file, a JSONL.
        measures: ``"all"`` (every streaming measure that applies) or names, as a list or
            separated by commas; among them names of studies.
        limit: read at most so many examples of data.
        batch_size: examples per forward, for data.
        seed: of the bootstrap, and of what studies draw; streaming values do not depend on it.
        replicates: of the bootstrap.
        strict: raise at the first example that cannot be used, instead of leaving it out.
        effect: for studies: one or several of `analysis.importance.effects.EFFECTS`; default the
            one that fits the model and the data.
        ablation: for studies: ``zero``, ``mean``, ``mean:role``, ``resample``, ``uniform``,
            ``mean_pattern`` or ``knock_out:QUERY->KEY`` with roles.
        label: for studies: field of the data with the class, or ``predicted``.
        draws: for studies: donors per example of resample ablation.
        copies: for studies: ablated copies of a batch that are run at once.
        graddrop: for `atp`: a backward per layer against cancellation.
        image_removal: for `vhd`: ``delete`` the image's positions, show a ``blank`` or a ``noise``.
        answers: for `vhd`: ``given`` ones, the model's ``own``, or ``auto``: its own where the data
            names objects or lacks answers.

    Returns:
        Values with 95 % intervals over examples, and each measure's null. Examples that cannot be
        used (that cannot be prepared, or have nothing to be read for a study) are left out, which
        a warning says.

    Raises:
        ValueError: an unknown measure, or one that was named and applies nowhere in this model;
            data that cannot be read; NaN or infinity in the model, tower and layer named.
    """
    from analysis.tally import Tally
    from headscope.scorer import Scorer

    names = measures if isinstance(measures, str) else ",".join(measures)
    effects = effect if isinstance(effect, str) else ",".join(effect)
    how = Options(
        names, limit, batch_size, seed, replicates, strict, effects, ablation, label, draws, copies,
        graddrop, image_removal, answers,
    )  # fmt: skip
    scorer = Scorer.make(subject, how)
    for study in scorer.studies:
        if getattr(study, "makes_section_only", False):
            raise AskedWrongly(
                f"{study.name!r} makes no scores by itself, so `hs.score` has nothing to give. "
                f"Use `hs.{study.name}`."
            )
    tally = Tally(replicates=replicates, seed=seed)
    name = inputs_name(str(inputs)) if isinstance(inputs, (str, Path)) else ""
    skipped: dict[str, str] = {}
    skip = skipping(skipped, strict)
    named = scorer.named
    data = data_of(subject, inputs, how, skip, again=bool(scorer.studies))
    scorer.begin(data)
    for batch in data():
        for scores in scorer.score_readable(batch, skip):
            tally.add(scores)
        if named and tally.examples:
            refuse_inapplicable(named, tally, subject.name)
            named = []
    if not tally.examples:
        first = next(iter(skipped.values()), "")
        raise ValueError(
            f"No example could be scored: {first}" if skipped else "There was no batch."
        )
    if skipped:
        warnings.warn(left_out(skipped, tally.examples), stacklevel=2)
    layers = {tower: found.layers for tower, found in subject.towers.items()}
    heads = tally.heads(name, layers, [measure.name for measure in scorer.measures])
    return scorer.with_lines(heads, name)


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


def data_of(
    subject: Subject, inputs: Any, how: Options, skip: Skip, *, again: bool
) -> Callable[[], Iterable[Batch]]:
    """Gives the batches each time it is called; those that were given as such are kept for it.

    Args:
        again: whether it will be called more than once.
    """
    if isinstance(inputs, (str, Path)):
        return _read_data(subject, inputs, how, skip)
    given = _given_batches(inputs)
    if not again:
        return lambda: given
    kept = list(given)
    return lambda: kept


def _read_data(
    subject: Subject, inputs: str | Path, how: Options, skip: Skip
) -> Callable[[], Iterable[Batch]]:
    from probes.readers import read_examples

    examples = list(read_examples(inputs, subject.kind, how.limit, skip))
    return lambda: batches(subject, examples, how.batch_size, skip)


def skipping(skipped: dict[str, str], strict: bool) -> Skip:
    """Notes once why an example is left out, however often it is come across."""

    def skip(example: Example, reason: str) -> None:
        if strict:
            raise ValueError(f"Example {example.id!r} cannot be scored: {reason}")
        skipped.setdefault(example.id, reason)

    return skip


def left_out(skipped: Mapping[str, str], scored: int) -> str:
    shown = "; ".join(f"{name!r} {reason}" for name, reason in [*skipped.items()][:_REASONS_SHOWN])
    more = len(skipped) - _REASONS_SHOWN
    return f"Left out {len(skipped)} of {len(skipped) + scored} examples: {shown}" + (
        f" And {more} more." if more > 0 else ""
    )


def _given_batches(inputs: Batch | Iterable[Batch]) -> Iterator[Batch]:
    from probes.inputs import Batch

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
