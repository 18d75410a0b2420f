"""Everything that is taken of a batch: streaming measures in one forward, then costly studies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headscope.plan import AskedWrongly, Options, names_in

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.head_table import HeadTable
    from analysis.importance.study import Study, StudyOptions
    from analysis.progress import Progress
    from analysis.scores import BatchScores
    from probes.inputs import Batch, Example
    from probes.subject import Subject

Data = Callable[[], Iterable["Batch"]]


@dataclass
class Scorer:
    """What was asked for, ready to score batches of one subject.

    Attributes:
        engine: for the streaming measures, None if only studies were asked for.
        measures: the streaming measures.
        studies: the costly groups.
        named: streaming measures that were asked for by name.
        study_measures: study -> names of the measures that it has given so far.
    """

    subject: Subject
    engine: Engine | None
    measures: list[Any]
    studies: list[Study]
    named: list[str]
    study_measures: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def make(cls, subject: Subject, how: Options) -> Scorer:
        """A scorer for what the options name.

        Raises:
            AskedWrongly: a measure, effect or ablation is unknown.
            LoadError: the model has no attention that can be captured, or weights with NaN.
        """
        from analysis.engine import Engine

        streaming, groups = split_names(how.measures)
        measures = chosen_measures(streaming) if streaming or not groups else []
        studies = chosen_studies(groups, how)
        if subject.towers:
            subject.check_weights()
        engine = Engine(subject.layout, measures) if measures else None
        named = [name for name in streaming if name != "all"]
        return cls(subject, engine, measures, studies, named)

    def refuse(self, data: Data) -> None:
        """Ask the studies whether anything can come of these data, before anything is written.

        Raises:
            ValueError: nothing can; the sentence says why.
        """
        for study in self.studies:
            refuse = getattr(study, "refuse", None)
            if refuse is not None:
                refuse(self.subject, data)

    def begin(self, data: Data, progress: Progress | None = None) -> None:
        """Let the studies pass over the data first.

        Args:
            progress: is told how far they are.

        Raises:
            AskedWrongly: an effect that this model or data cannot give.
            ValueError: a study cannot be done on this model and data.
        """
        if not self.studies or next(iter(data()), None) is None:
            return  # without a single example, scoring says why
        from analysis.importance.study import EffectError

        for study in self.studies:
            stage = tell_progress(study, progress).stage("getting ready", None)
            try:
                study.begin(self.subject, data)
            except EffectError as error:
                raise AskedWrongly(str(error)) from error
            stage.end()

    def score(self, batch: Batch) -> BatchScores:
        """Per-example sums of all that was asked for."""
        from analysis.scores import BatchScores
        from headscope.scoring import score_batch

        parts = []
        if self.engine is not None:
            parts.append(score_batch(self.subject, self.engine, batch))
        for study in self.studies:
            scores = study.score(self.subject, batch)
            parts.append(scores)
            known = self.study_measures.setdefault(study.name, [])
            found = dict.fromkeys(column.measure for column in scores.columns)
            known += [name for name in found if name not in known]
        return parts[0] if len(parts) == 1 else BatchScores.beside(parts)

    def score_readable(
        self, batch: Batch, skip: Callable[[Example, str], None]
    ) -> list[BatchScores]:
        """`score`, without the examples in which studies find nothing to be read.

        Args:
            skip: gets each of those, and why.

        Returns:
            One block of scores, none if no example is left.
        """
        from analysis.importance.readings import ReadingError

        try:
            return [self.score(batch)]
        except ReadingError as error:
            bad = [example for example in batch.examples if example.id == error.example_id]
            rest = [example for example in batch.examples if example.id != error.example_id]
            if len(bad) != 1 or (rest and not _made_of_examples(self.subject, batch)):
                raise
            skip(bad[0], str(error).removeprefix(f"Example {bad[0].id!r}").lstrip(": "))
        return self.score_readable(self.subject.prepare(examples=rest), skip) if rest else []

    def with_lines(
        self, heads: HeadTable, inputs: str, studies: Sequence[Study] | None = None
    ) -> HeadTable:
        """The head table, and the lines of studies that are no sums over the data's examples.

        Such are those of probes, which bear the probe's name as `inputs`.

        Args:
            studies: only these; all by default.
        """
        from analysis.head_table import HeadTable

        more = []
        for study in self.studies if studies is None else studies:
            give = getattr(study, "lines", None)
            frame = None if give is None else give(self.subject, inputs)
            if frame is not None and len(frame):
                more.append(HeadTable(frame, heads.layers))
                known = self.study_measures.setdefault(study.name, [])
                known += [name for name in more[-1].measures if name not in known]
        return heads.merge(*more) if more else heads


def tell_progress(study: Study, progress: Progress | None) -> Progress:
    """Let a study that has stages to tell of tell them here, under its name; returns the same."""
    from analysis.progress import Progress

    found = Progress() if progress is None else replace(progress, of=study.name)
    if hasattr(study, "progress"):
        study.progress = found  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _made_of_examples(subject: Subject, batch: Batch) -> bool:
    """Whether a batch is what its examples are prepared as, so that some of them can be again.

    Not if it was made of tensors, or with settings that nobody knows any more.
    """
    from probes.inputs import InputError

    try:
        again = subject.on_device(subject.prepare(examples=batch.examples)).tensors
    except InputError:
        return False
    mine = subject.on_device(batch).tensors
    return again.keys() == mine.keys() and all(_alike(again[name], mine[name]) for name in mine)


def _alike(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other) and one == other


def split_names(measures: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of streaming measures (or ``all``) and names of studies."""
    from analysis.importance.study import study_names

    known = study_names()
    names = names_in(measures if isinstance(measures, str) else ",".join(measures))
    return [n for n in names if n not in known], [n for n in names if n in known]


def chosen_measures(measures: Sequence[str]) -> list[Any]:
    """The streaming measures that were asked for.

    Raises:
        AskedWrongly: a name is unknown.
    """
    from analysis.importance.study import study_names
    from analysis.measures import select_measures

    try:
        return list(select_measures(measures))
    except ValueError as error:
        groups = ", ".join(study_names())
        raise AskedWrongly(f"{error} Costly groups: {groups}.") from error


def chosen_studies(names: Sequence[str], how: Options) -> list[Study]:
    """The studies that were asked for.

    Raises:
        AskedWrongly: an effect, ablation or number of draws that there is not.
    """
    from analysis.importance.study import available_studies, study_names

    if not names:
        if how.effect:
            raise AskedWrongly(
                f"`--effect {how.effect}` must come with a group that runs the model without "
                f"heads. Add one to `--measures`: {', '.join(study_names())}."
            )
        return []

    try:
        options = study_options(how)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error
    known = available_studies()
    return [known[name](options) for name in dict.fromkeys(names)]


def study_options(how: Options) -> StudyOptions:
    from analysis.importance.study import StudyOptions

    return StudyOptions(
        tuple(names_in(how.effect)),
        how.ablation,
        how.label,
        how.draws,
        how.seed,
        how.copies,
        how.graddrop,
        how.image_removal,
        how.answers,
        how.atlas,
    )
