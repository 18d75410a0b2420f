"""The sections of a run that studies fill: their scores, agreement, classes and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from headscope.batching import batches
from headscope.kept_examples import KEPT
from headscope.plan import Options
from headscope.scorer import tell_progress

if TYPE_CHECKING:
    from analysis.head_table import HeadTable
    from analysis.importance.study import Study
    from analysis.journal import Journal
    from analysis.progress import Progress
    from analysis.run_folder import RunFolder
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from headscope.scorer import Scorer
    from probes.inputs import Example

SECTION = "importance"
"""Where the tables of a study go that names no `section` of its own."""
ESTIMATES = ("atp", "gradient", "relevancy", "direct")
"""Studies whose measures are set against the exact effect, beside `weight_importance`."""

REPLACING = {
    "importance": ("importance_", "layer_off_"),
    "keep_one": ("keep_one_",),
    "patching": ("patch_",),
}
"""By study, how its measures begin that put something in the place of head outputs."""


def study_measures_of(journal: Journal) -> dict[str, list[str]]:
    """Study -> names of the measures that it gave in any shard."""
    found: dict[str, dict[str, None]] = {}
    for shard in journal.finished():
        for study, names in journal.about(shard).get("studies", {}).items():
            found.setdefault(study, {}).update(dict.fromkeys(names))
    return {study: list(names) for study, names in found.items()}


def section_of(study: Study) -> str:
    """The section that a study writes into."""
    return getattr(study, "section", SECTION)


def write_sections(
    scorer: Scorer,
    folder: RunFolder,
    tally: Tally,
    examples: Sequence[Example],
    how: Options,
    progress: Progress,
) -> None:
    """Write a folder for each section that the studies name: their heads and tables.

    ``importance/`` also holds agreement, classes, and effects by example. A finished section of an
    interrupted run is left as it is.

    Args:
        examples: those that were scored; `progress` counts as many.
    """
    from analysis.run_files import MANIFEST

    for section in dict.fromkeys(section_of(study) for study in scorer.studies):
        if not (folder.path / section / MANIFEST).exists():
            _write_section(section, scorer, folder, tally, examples, how, progress)


def _write_section(
    section: str,
    scorer: Scorer,
    folder: RunFolder,
    tally: Tally,
    examples: Sequence[Example],
    how: Options,
    progress: Progress,
) -> None:
    from analysis.atomic_file import written_atomically
    from analysis.run_folder import new_section

    plan = folder.plan
    studies = [study for study in scorer.studies if section_of(study) == section]
    mine = {study.name for study in studies}
    found = study_measures_of(folder.journal)
    by_study = {name: measures for name, measures in found.items() if name in mine}
    names = [name for measures in by_study.values() for name in measures]
    heads = tally.heads(plan["data"]["inputs"], plan["layers"], names, set(names))
    frames = _tables(studies, scorer, tally, examples, how, progress)
    heads = scorer.with_lines(heads, plan["data"]["inputs"], studies)
    scored = {name: given for name, given in scorer.study_measures.items() if name in mine}
    by_study = {**scored, **by_study}
    if section == SECTION:
        frames |= _frames(folder, tally, examples, how, heads, by_study)
    frames = {name: frame for name, frame in frames.items() if len(frame)}
    about = {
        "studies": by_study,
        "options": plan["study_options"],
        "n": tally.examples,
        "reliability": [line for line in tally.reliability() if line["measure"] in names],
        "touched": _touched(tally, studies, names),
    }
    with new_section(folder.path, section, about) as path:
        heads.to_parquet(path / "heads.parquet")
        for name, frame in frames.items():
            with written_atomically(path / f"{name}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)
        for study in studies:
            save = getattr(study, "save", None)
            if save is not None:
                save(path)


def _touched(tally: Tally, studies: Sequence[Study], names: Sequence[str]) -> list[dict[str, Any]]:
    """What these measures changed in the model; and what they could not change, and why."""
    from analysis.touched import by_tower, nothing_in

    changed = {place: one for place, one in tally.touched.items() if place[2] in names}
    prefixes = tuple(prefix for study in studies for prefix in REPLACING.get(study.name, ()))
    left = [line for line in tally.not_measured if line["measure"].startswith(prefixes)]
    return by_tower(changed) + [nothing_in(**line) for line in left]


def _tables(
    studies: Sequence[Study],
    scorer: Scorer,
    tally: Tally,
    examples: Sequence[Example],
    how: Options,
    progress: Progress,
) -> dict[str, Any]:
    """The studies' own tables by file name."""

    def data() -> Any:
        return batches(scorer.subject, examples, how.batch_size, lambda example, reason: None)

    frames: dict[str, Any] = {}
    for study in studies:
        tell_progress(study, progress)
        if hasattr(study, "kept"):
            study.kept = tuple(e.id for e in examples[:KEPT])  # pyright: ignore[reportAttributeAccessIssue]
        frames.update(study.finish(scorer.subject, data, tally))
    return frames


def _frames(
    folder: RunFolder,
    tally: Tally,
    examples: Sequence[Example],
    how: Options,
    heads: HeadTable,
    by_study: dict[str, list[str]],
) -> dict[str, Any]:
    """What is told of all importance studies together, by file name."""
    from analysis.importance.agreement import agreement
    from analysis.importance.by_class import class_table, example_table

    def scores() -> Iterator[BatchScores]:
        return _scores_of(folder.journal)

    frames: dict[str, Any] = {}
    exact = by_study.get("importance", [])
    estimates = {name for study in ESTIMATES for name in by_study.get(study, [])}
    estimates.add("weight_importance")
    frames["agreement"] = agreement(heads, estimates, tally.halves, seed=how.seed)
    if exact:
        frames["examples"] = example_table(scores, exact)
    names = {e.id: _class_name(e, how.label) for e in examples}
    classes = {name: str(found) for name, found in names.items() if found is not None}
    if exact and 1 < len(set(classes.values())) < len(classes):
        frames["classes"] = class_table(
            scores, classes, exact, replicates=how.replicates, seed=how.seed
        )
    return frames


def _scores_of(journal: Journal) -> Iterator[BatchScores]:
    from analysis.scores import BatchScores

    for shard in journal.finished():
        arrays, about = journal.read(shard)
        if about["scores"] is not None:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            yield BatchScores.from_tensors(tensors, about["scores"])


def _class_name(example: Example, label: str) -> Any:
    if label and label in example.extra:
        return example.extra[label]
    return example.extra.get("label_name", example.label)
