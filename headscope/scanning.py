"""Compare heads on a behaviour and a control, and take the farthest away: ``hs.scan``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headscope.batching import BATCH_SIZE, batches
from headscope.plan import AskedWrongly, Options

if TYPE_CHECKING:
    from analysis.importance.behaviours.places import Where
    from analysis.importance.scans.options import ScanOptions, Side
    from analysis.importance.scans.result import Scan
    from analysis.progress import Listener
    from probes.inputs import Batch, Example
    from probes.subject import Subject

    Inputs = str | Path | Batch | Sequence[str] | Sequence[Example] | Sequence[Batch]


def scan(
    subject: Subject,
    behaviour: Inputs,
    control: Inputs,
    measure: str = "activity",
    *,
    variant: str = "",
    towers: str | Sequence[str] = (),
    where: Where | Literal[""] = "",
    last: int = 4,
    paired: bool = False,
    side: Side = "more",
    top: Sequence[int] = (1, 2, 4, 8),
    randoms: int = 20,
    permutations: int = 9_999,
    effect: str = "",
    ablation: str = "mean",
    label: str = "",
    draws: int = 5,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    replicates: int = 200,
) -> Scan:
    """Which heads differ between two sets of inputs, and does the behaviour need them.

    Each head's effect size (difference of the means in pooled standard deviations), with a
    bootstrap interval, a permutation p and a false discovery rate over all heads. Then the heads
    that differ most on one half of the examples are taken away together on the other half, beside
    random sets with as many heads in each layer. After the functional scan of experts (fTRI, arXiv
    2502.11096). The two sets should differ in nothing but the behaviour.

    Args:
        behaviour, control: data (the name of a bundled set, a JSONL, a folder of images), a list of
            texts or examples, or batches. At least 2 examples each, 4 if heads are taken away.
        measure: ``activity`` is the length of what a head writes; or the name of a streaming
            measure.
        variant: of the measure, where it has several.
        towers: those to scan; by default the one that writes, else all.
        where: for activity: ``last`` (the last ``last`` positions of the prompt), ``answer`` (those
            that predict the answer), ``text`` or ``all``; by default ``answer`` where examples have
            one, else ``last``.
        paired: examples with one id in both sets belong together, such as two fillings of a
            template; the test is then far more powerful.
        side: take away heads whose value is higher on the behaviour (``more``), lower (``less``),
            or the farthest apart (``either``).
        top: how many heads are taken away together; with none nothing is confirmed.
        randoms: most random sets per size.
        permutations: random splits of the examples, where there are more than so many.
        effect, ablation, label, draws: of the confirmation, as in `hs.score`; one effect on the
            output.
        limit: read at most so many examples of each set, where it is data.
        batch_size: examples per forward, where they are not batches.

    Returns:
        ``heads`` (a frame, farthest apart first), ``confirmation`` and ``excess()`` (what the
        chosen heads cost beside random ones), ``table()`` (a head table).

    Raises:
        ValueError: a name that there is not, sets that are empty, too small or the same, examples
            without a pair, an effect or a measure that this model or data cannot give.
    """
    from analysis.importance.scans.options import ScanOptions

    names = (towers,) if isinstance(towers, str) and towers else tuple(towers)
    with asked_wrongly():
        how = ScanOptions(
            measure, variant, names, where, last, paired, side, tuple(top), randoms, permutations,
            replicates,
        )  # fmt: skip
    options = Options(
        limit=limit, batch_size=batch_size, seed=seed, replicates=replicates, effect=effect,
        ablation=ablation, label=label, draws=draws,
    )  # fmt: skip
    refuse_same(behaviour, control)
    refuse_unknown(how, options)
    sets = [
        _inputs(subject, given, name, how, options)
        for name, given in (("behaviour", behaviour), ("control", control))
    ]
    return run_scan(subject, sets[0], sets[1], how, options)


def run_scan(
    subject: Subject,
    behaviour: Any,
    control: Any,
    how: ScanOptions,
    options: Options,
    listener: Listener | None = None,
) -> Scan:
    """The scan itself, on batches or functions that give them."""
    from analysis.importance.scans.scan import scan as scan_batches
    from analysis.progress import RUNS, Progress, Stage
    from headscope.scorer import study_options

    stages: list[Stage] = []

    def judged(done: int, total: int) -> None:
        if not stages:
            stages.append(Progress(listener).stage("without sets of heads", total, RUNS))
        stages[0].reach(done, 0)

    subject.check_weights()
    with asked_wrongly():
        return scan_batches(subject, behaviour, control, how, study_options(options), judged)


def refuse_same(behaviour: Any, control: Any) -> None:
    """Raise where the control is the behaviour itself."""
    named = isinstance(behaviour, (str, Path)) and isinstance(control, (str, Path))
    if behaviour is control or (named and str(behaviour) == str(control)):
        what = f"both are {str(control)!r}" if named else "both are the same object"
        raise AskedWrongly(f"The control must be another set than the behaviour, {what}.")


def refuse_unknown(how: ScanOptions, options: Options) -> None:
    """Raise where a measure, effect or ablation is no such thing; no model is needed for it."""
    from analysis.importance.scans.options import ACTIVITY
    from analysis.importance.study import study_names
    from analysis.measures import available_measures, select_measures
    from headscope.scorer import study_options

    with asked_wrongly(ValueError):
        study_options(options)
    if how.measure in ("all", *study_names()):
        raise AskedWrongly(
            f"A scan must be of {ACTIVITY} or of one streaming measure, got {how.measure!r}."
        )
    if how.measure != ACTIVITY and how.measure not in available_measures():
        try:
            select_measures([how.measure])
        except ValueError as error:
            raise AskedWrongly(f"{error} Or {ACTIVITY}: how much a head writes.") from error


@contextmanager
def asked_wrongly(*kinds: type[ValueError]) -> Iterator[None]:
    """Errors that say what can be had instead, as `AskedWrongly`."""
    from analysis.importance.scans.options import ScanError
    from analysis.importance.study import EffectError

    try:
        yield
    except (ScanError, EffectError, *kinds) as error:
        raise AskedWrongly(str(error)) from error


@dataclass
class PreparedSet:
    """The examples of one set, as batches whenever they are asked for.

    Attributes:
        skipped: examples that the model cannot read, with the reason.
        listener: told how far each pass over the examples has come.
    """

    subject: Subject
    name: str
    examples: list[Example]
    batch_size: int
    seed: int
    paired: bool
    listener: Listener | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)

    def __call__(self) -> Iterator[Batch]:
        """Batches of one half and then of the other, so that each half can be run by itself."""
        from analysis.importance.scans.two_sets import halves
        from analysis.progress import Progress

        prefix = "" if self.paired else f"{self.name}:"
        first = halves([prefix + example.id for example in self.examples], self.seed)
        stage = Progress(self.listener).stage(f"the {self.name}", len(self.examples))
        for wanted in (True, False):
            some = [e for e, mine in zip(self.examples, first, strict=True) if mine == wanted]
            for batch in batches(self.subject, some, self.batch_size, self._skip):
                yield batch
                stage.reach(stage.done + batch.size, len(self.skipped))
        stage.end()
        if not stage.done:
            why = f": {self.skipped[0]['reason']}" if self.skipped else "."
            raise ValueError(f"None of the examples of the {self.name} can be read{why}")

    def _skip(self, example: Example, reason: str) -> None:
        line = {"id": f"{self.name}:{example.id}", "reason": reason}
        if line not in self.skipped:
            self.skipped.append(line)


def read_set(
    subject: Subject, data: str | Path, name: str, how: ScanOptions, options: Options
) -> PreparedSet:
    """The examples of data that fit the subject."""
    from probes.readers import read_examples

    found = PreparedSet(subject, name, [], options.batch_size, options.seed, how.paired)
    found.examples += read_examples(data, subject.kind, options.limit, found._skip)
    return found


def _inputs(
    subject: Subject, given: Any, name: str, how: ScanOptions, options: Options
) -> PreparedSet | list[Batch]:
    from probes.inputs import Batch, Example

    if isinstance(given, (str, Path)):
        return read_set(subject, given, name, how, options)
    items: list[Any] = [given] if isinstance(given, Batch) else list(given)
    if items and all(isinstance(item, Batch) for item in items):
        return items
    texts = all(isinstance(item, str) for item in items)
    if not items or not (texts or all(isinstance(item, Example) for item in items)):
        what = f"one of {type(items[0]).__name__}" if items else "an empty one"
        raise ValueError(
            f"`{name}` must be data, or a list of texts, examples or batches, got {what}. "
            "Pass one of those."
        )
    if texts:
        items = [Example(str(index), text=text) for index, text in enumerate(items)]
    return PreparedSet(subject, name, items, options.batch_size, options.seed, how.paired)
