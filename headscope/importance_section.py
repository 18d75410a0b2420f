"""The section of a run that studies fill: their scores, agreement, classes and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from headscope.batching import batches
from headscope.plan import Options

if TYPE_CHECKING:
    from analysis.head_table import HeadTable
    from analysis.journal import Journal
    from analysis.run_folder import RunFolder
    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from headscope.scorer import Scorer
    from probes.inputs import Example

SECTION = "importance"
ESTIMATES = ("atp", "gradient", "relevancy", "direct")
"""Studies whose measures are set against the exact effect, beside `weight_importance`."""


def study_measures_of(journal: Journal) -> dict[str, list[str]]:
    """Study -> names of the measures that it gave in any shard."""
    found: dict[str, dict[str, None]] = {}
    for shard in journal.finished():
        for study, names in journal.about(shard).get("studies", {}).items():
            found.setdefault(study, {}).update(dict.fromkeys(names))
    return {study: list(names) for study, names in found.items()}


def write_section(
    scorer: Scorer, folder: RunFolder, tally: Tally, examples: Sequence[Example], how: Options
) -> None:
    """Write ``importance/``: heads, agreement, classes, effects by example, the studies' tables.

    A finished section of an interrupted run is left as it is.
    """
    from analysis.atomic_file import written_atomically
    from analysis.run_files import MANIFEST
    from analysis.run_folder import new_section

    if (folder.path / SECTION / MANIFEST).exists():
        return
    plan, by_study = folder.plan, study_measures_of(folder.journal)
    names = [name for measures in by_study.values() for name in measures]
    heads = tally.heads(plan["data"]["inputs"], plan["layers"], names, set(names))
    heads = scorer.with_lines(heads, plan["data"]["inputs"])
    by_study = {**scorer.study_measures, **by_study}
    frames = _frames(scorer, folder, tally, examples, how, heads, by_study)
    about = {
        "studies": by_study,
        "options": plan["study_options"],
        "n": tally.examples,
        "reliability": [line for line in tally.reliability() if line["measure"] in names],
    }
    with new_section(folder.path, SECTION, about) as path:
        heads.to_parquet(path / "heads.parquet")
        for name, frame in frames.items():
            with written_atomically(path / f"{name}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)


def _frames(
    scorer: Scorer,
    folder: RunFolder,
    tally: Tally,
    examples: Sequence[Example],
    how: Options,
    heads: HeadTable,
    by_study: dict[str, list[str]],
) -> dict[str, Any]:
    """Tables by file name; empty ones are left out."""
    from analysis.importance.agreement import agreement
    from analysis.importance.by_class import class_table, example_table

    def data() -> Any:
        return batches(scorer.subject, examples, how.batch_size, lambda example, reason: None)

    def scores() -> Iterator[BatchScores]:
        return _scores_of(folder.journal)

    frames: dict[str, Any] = {}
    for study in scorer.studies:
        frames.update(study.finish(scorer.subject, data, tally))
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
    return {name: frame for name, frame in frames.items() if len(frame)}


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
