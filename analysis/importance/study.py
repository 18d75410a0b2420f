"""What a study is: a costly group of measures that runs the model more than once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from analysis.atlas.options import AtlasOptions
from analysis.importance.effects import EFFECTS, Effect, effect_named
from analysis.importance.targets import Data, Reader

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.readings import Reading
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

GROUP = "headscope.studies"
BUILT_IN = {
    "importance": "analysis.importance.leave_one_out:importance",
    "keep_one": "analysis.importance.leave_one_out:keep_one",
    "patching": "analysis.importance.patches.patching:patching",
    "direct": "analysis.importance.estimates.direct:direct",
    "behaviour": "analysis.importance.behaviours.behaviour:make",
    "retrieval": "analysis.importance.behaviours.retrieval:make",
    "redundancy": "analysis.importance.redundancies.redundancy:make",
    "atp": "analysis.importance.estimates.attribution_patching:atp",
    "gradient": "analysis.importance.estimates.gradient:gradient",
    "relevancy": "analysis.importance.estimates.relevancy:relevancy",
    "influence": "analysis.importance.estimates.influence:influence",
    "weights": "analysis.importance.circuits.weights:weights",
    "vocabulary_roles": "analysis.importance.circuits.vocabulary_roles:vocabulary_roles",
    "saliency": "analysis.vision.saliency:make",
    "sinks": "analysis.sinks.study:sinks",
    "vhd": "analysis.vision.vhd:make",
    "atlas": "analysis.atlas.study:make",
}


_WORDS = {
    "image_removal": ("delete", "blank", "noise"),
    "answers": ("auto", "own", "given"),
}


@dataclass(frozen=True)
class StudyOptions:
    """How studies take heads away and what they read.

    Attributes:
        effects: names of effects; empty for the one that fits: cross_entropy where there is
            something to be right about, else jsd on logits, else cosine on vectors.
        ablation: what stands in for a head, as `analysis.importance.replacements` names it.
        label: field of the data that holds the class; ``predicted`` takes the intact model's
            own answer.
        draws: donors per example for resample ablation.
        seed: of donors, shuffled targets and random heads.
        copies: ablated copies of a batch that are run at once; 1 on a CPU is fastest.
        graddrop: whether `atp` runs a backward per layer against cancellation.
        image_removal: how `vhd` takes the image away: ``delete``, ``blank`` or ``noise``.
        answers: which answers `vhd` reads: ``given`` with the data, the model's ``own``, or
            ``auto``.
        atlas: sizes of the pattern atlas, and how its map is drawn.
    """

    effects: tuple[str, ...] = ()
    ablation: str = "mean"
    label: str = ""
    draws: int = 5
    seed: int = 0
    copies: int = 1
    graddrop: bool = False
    image_removal: str = "delete"
    answers: str = "auto"
    atlas: AtlasOptions = field(default_factory=AtlasOptions)

    def __post_init__(self) -> None:
        from analysis.importance.replacements import replacement_named

        for name in self.effects:
            effect_named(name)
        replacement_named(self.ablation)
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        for name in ("draws", "copies"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


class EffectError(ValueError):
    """An effect was asked for that this model or data cannot give; the sentence says what can."""


class Study(Protocol):
    """A group of measures that is named in `measures` and takes more than one forward.

    A study may also have

    - a method ``refuse(subject, data)``: raises ValueError where nothing will come of this model
      and these data, as far as a batch or two tell; asked before anything is written;
    - a method ``rehearse(subject, data, examples) -> str``: what `finish` does, as far as its time
      on some batches tells that on so many examples, and in words what it leaves out;
    - a method ``lines(subject, inputs) -> DataFrame | None``: lines of the head table that are no
      sums over the user's examples, such as those of probes and of weights; asked for after
      `finish`, where there is a run folder;
    - an attribute ``makes_section_only``, true where everything it gives is made by `finish`;
    - a method ``save(folder)``: files of its section that are no tables;
    - an attribute ``section``, the section of a run that its tables go to, ``importance`` without
      it;
    - an attribute ``kept``, set before `finish` to the ids of the examples that the run keeps, for
      a study that keeps more of these than of others;
    - an attribute ``progress`` (`analysis.progress.Progress`), which whoever runs the study sets
      before `begin` and before `finish`. What these two do besides looking at a batch or two should
      be a stage of it: ``for batch in self.progress.over("means", data)():``.

    Attributes:
        name: what the user writes.
    """

    @property
    def name(self) -> str: ...

    def begin(self, subject: Subject, data: Data) -> None:
        """Pass over the data first, where something of it is needed (means, kinds of output).

        Raises:
            ValueError: the study cannot be done on this model and data; the sentence says why.
        """
        ...

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Per-example sums of one batch."""
        ...

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """Tables for the run's section, by name; ``{}`` if there are none.

        Called once, after all batches were counted. It may run the model again.
        """
        ...


def available_studies() -> dict[str, Callable[[StudyOptions], Study]]:
    """Factories by name: ours, and those that installed packages add (``headscope.studies``)."""
    found: dict[str, Callable[[StudyOptions], Study]] = {}
    for name, where in BUILT_IN.items():
        module, _, factory = where.partition(":")
        found[name] = getattr(import_module(module), factory)
    for point in entry_points(group=GROUP):
        if point.name not in found:
            found[point.name] = point.load()
    return found


def study_names() -> list[str]:
    """Names of all studies; nothing is imported for it."""
    return list(dict.fromkeys([*BUILT_IN, *(p.name for p in entry_points(group=GROUP))]))


def chosen_effects(options: StudyOptions, reader: Reader) -> list[Effect]:
    """The effects that were asked for, or the one that fits the model and data.

    Raises:
        EffectError: an effect that this model or data cannot give.
    """
    if not options.effects:
        if reader.known_targets:
            return [EFFECTS["cross_entropy"]]
        return [EFFECTS["cosine" if reader.kind == "features" else "jsd"]]
    effects = [effect_named(name) for name in options.effects]
    for effect in effects:
        refuse_unreadable(effect, reader)
    return effects


def refuse_unreadable(effect: Effect, reader: Reader) -> None:
    """Raise where an effect cannot be told from what the model gives out."""
    if effect.needs == "target" and not reader.known_targets:
        can = "cosine" if reader.kind == "features" else "jsd or flip"
        if reader.kind == "class":
            why = f"the data has no {reader.label or 'label'!r}"
        elif reader.kind == "tokens":
            why = "the model does not predict next tokens"
        else:
            why = "the model gives vectors, no classes"
        raise EffectError(
            f"Effect {effect.name!r} must have something to be right about, and {why}. "
            f"Choose `--effect {can}`, or give `--label`."
        )
    if effect.needs == "logits" and reader.kind == "features":
        raise EffectError(
            f"Effect {effect.name!r} must have logits, and this model gives vectors. "
            "Choose `--effect cosine`, or give word labels for zero-shot classes."
        )
    if effect.needs == "features" and reader.kind != "features":
        raise EffectError(
            f"Effect {effect.name!r} compares vectors, and this model gives logits. "
            "Choose jsd, flip, or layer_cosine for what the head's own block gives out."
        )


def readable(effects: list[Effect], reading: Reading) -> bool:
    """Whether every effect that needs a target has one at each read."""
    return all(e.needs != "target" or bool((reading.target >= 0).all()) for e in effects)
