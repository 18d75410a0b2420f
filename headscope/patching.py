"""Patch heads between two runs that differ in one thing: ``hs.patch``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.batching import BATCH_SIZE, batches
from headscope.plan import inputs_name

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable
    from analysis.importance.patches.pairs import Direction
    from analysis.importance.patches.path_passes import Via
    from probes.heads import Head, Site
    from probes.inputs import Batch, Example
    from probes.subject import Subject

    Selection = str | Head | Site | Iterable[str | Head | Site]

EACH = "each"
"""As `at`: every position by itself."""
OUTPUT = "output"
"""As a receiver: what goes past all later heads."""


def patch(
    subject: Subject,
    pairs: str | Path | Sequence[Example] | tuple[Sequence[str], Sequence[str]],
    heads: Selection = "*",
    direction: Direction = "noising",
    *,
    correct: Sequence[str] | str | None = None,
    wrong: Sequence[str] | str | None = None,
    at: str | Sequence[str] = "all",
    senders: Selection | None = None,
    receivers: Selection | None = None,
    via: Via | Sequence[Via] = ("query", "key", "value"),
    freeze_mlps: bool = False,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    copies: int = 1,
    null: bool = True,
    seed: int = 0,
    replicates: int = 200,
) -> HeadTable | pd.DataFrame:
    """What heads carry of the difference between two inputs, by exchanging their outputs.

    Each pair is a clean input, the same input with one thing changed, and the two answers that
    tell them apart. The metric is the logit of the correct answer minus that of the wrong one.

    Args:
        pairs: data with the fields ``corrupt correct wrong`` (a bundled set such as
            ``pairs-induction``, a JSONL), examples that have them, or two lists of texts (clean,
            corrupted) to which ``correct`` and ``wrong`` are given.
        heads: which heads are exchanged, one at a time.
        direction: ``noising`` puts the corrupted output into the clean run (what is a head needed
            for?), ``denoising`` the clean one into the corrupted run (what does it suffice for?).
        correct, wrong: answers of two lists of texts, one for each or one for all.
        at: ``all`` positions, the ``answer`` position, names of roles, or ``each``: one after the
            other, which gives a frame with one line per pair, head and position.
        senders, receivers: path patching instead: how much of a sender's difference reaches the
            output through a receiver. ``"output"`` among the receivers: past all later heads.
            Senders default to ``heads``, receivers to all heads.
        via: which input of the receivers a path takes: ``query``, ``key``, ``value`` or ``all``.
        freeze_mlps: for paths: hold the MLPs between sender and receiver.
        copies: changed copies of a batch that are run at once.
        null: also exchange each head's output for that of another pair.

    Returns:
        A head table with ``patch_DIRECTION_logit_difference`` and the same with ``_share``
        (divided by clean minus corrupted), with intervals over pairs and the null of a mismatched
        pair; for ``each`` and for paths a frame (`analysis.importance.patches.patch_map.patch_map`,
        `analysis.importance.patches.path_patching.path_patch`).

    Raises:
        ValueError: pairs whose halves differ in length, answers that one token cannot tell apart,
            heads that the model does not have, a direction that there is not.
    """
    from analysis.importance.patches.pairs import DIRECTIONS

    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}, got {direction!r}.")
    examples = _examples(subject, pairs, correct, wrong, limit)
    data = list(batches(subject, examples, batch_size, _refuse))
    if senders is not None or receivers is not None:
        from analysis.importance.patches.path_patching import path_patch

        return path_patch(
            subject,
            _paired(subject, data),
            _heads(subject, heads if senders is None else senders),
            _receivers(subject, "*" if receivers is None else receivers),
            via,
            direction,
            at=_positions(at),
            freeze_mlps=freeze_mlps,
            copies=copies,
            replicates=replicates,
            seed=seed,
        )
    if at == EACH:
        from analysis.importance.patches.patch_map import patch_map

        chosen = _heads(subject, heads)
        return patch_map(subject, _paired(subject, data), chosen, direction, copies)
    name = inputs_name(str(pairs)) if isinstance(pairs, (str, Path)) else ""
    how = {"at": _positions(at), "directions": (direction,), "null": null}
    return _table(subject, data, _heads(subject, heads), how, name, copies, seed, replicates)


def _table(
    subject: Subject,
    data: Sequence[Batch],
    heads: Sequence[Head],
    how: dict[str, Any],
    name: str,
    copies: int,
    seed: int,
    replicates: int,
) -> HeadTable:
    from analysis.importance.patches.patching import Patching
    from analysis.importance.study import StudyOptions
    from analysis.tally import Tally

    by_site: dict[Site, list[int]] = {}
    for head in heads:
        by_site.setdefault(head.site, []).append(head.head)
    study = Patching(StudyOptions(seed=seed, copies=copies), heads=by_site, **how)
    study.begin(subject, lambda: data)
    tally = Tally(replicates=replicates, seed=seed)
    for batch in data:
        tally.add(study.score(subject, batch))
    if not tally.measures:
        reasons = [entry["reason"] for entry in tally.not_measured]
        raise ValueError(reasons[0] if reasons else "No head was reached by these inputs.")
    layers = {tower: found.layers for tower, found in subject.towers.items()}
    return tally.heads(name, layers)


def _examples(
    subject: Subject,
    pairs: Any,
    correct: Sequence[str] | str | None,
    wrong: Sequence[str] | str | None,
    limit: int | None,
) -> list[Example]:
    from probes.inputs import Example

    answered = correct is not None or wrong is not None
    if isinstance(pairs, (str, Path)):
        from probes.readers import read_examples

        if answered:
            raise ValueError("`correct` and `wrong` must stand in the data, not beside it.")
        return list(read_examples(pairs, subject.kind, limit))
    given = list(pairs)
    if given and all(isinstance(item, Example) for item in given):
        if answered:
            raise ValueError("`correct` and `wrong` must stand in the examples, not beside them.")
        return given[:limit]
    if len(given) != 2 or any(isinstance(half, str) for half in given):
        raise ValueError(
            "`pairs` must be data, examples, or two lists of texts (clean, corrupted), got "
            f"{type(pairs).__name__} of {len(given)}. Pass one of those."
        )
    clean, corrupted = (list(half) for half in given)
    asked = {"correct": correct, "wrong": wrong}
    words = [_for_all(name, value, len(clean)) for name, value in asked.items()]
    if len(clean) != len(corrupted) or not clean:
        raise ValueError(
            f"`pairs` must be two lists of as many texts, got {len(clean)} and {len(corrupted)}."
        )
    together = zip(clean, corrupted, *words, strict=True)
    return [
        Example(str(index), text=text, corrupt=other, correct=right, wrong=false)
        for index, (text, other, right, false) in enumerate(together)
    ][:limit]


def _for_all(name: str, value: Sequence[str] | str | None, count: int) -> list[str]:
    words = [value] * count if isinstance(value, str) else list(value or ())
    if len(words) != count:
        raise ValueError(
            f"`{name}` must be one word, or one for each of {count} texts, got {len(words)}."
        )
    return words


def _paired(subject: Subject, data: Iterable[Batch]) -> Iterable[Any]:
    from analysis.importance.patches.pairs import pair_up

    for batch in data:
        yield pair_up(subject, batch.examples)


def _heads(subject: Subject, selection: Any) -> list[Head]:
    from probes.heads import select_heads

    return select_heads(selection, subject.towers)


def _receivers(subject: Subject, selection: Any) -> list[Head | str]:
    from probes.heads import Head, Site

    single = isinstance(selection, (str, Head, Site))
    items = [selection] if single else list(selection)
    named = [item for item in items if item != OUTPUT]
    heads: list[Head | str] = list(_heads(subject, named)) if named else []
    return [*heads, OUTPUT] if OUTPUT in items else heads


def _positions(at: str | Sequence[str]) -> Any:
    from analysis.importance.patches.patched_positions import Positions

    return Positions(at)


def _refuse(example: Example, reason: str) -> None:
    raise ValueError(f"Example {example.id!r} cannot be patched: {reason}")
