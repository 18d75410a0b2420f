"""The pattern atlas of a subject, or of the patterns that a run has kept: ``hs.atlas``."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atlas.options import AtlasOptions, Space
from headscope.batching import BATCH_SIZE
from headscope.plan import AskedWrongly, Options

if TYPE_CHECKING:
    from analysis.atlas.atlas import Atlas
    from analysis.progress import Listener
    from analysis.run_folder import Run
    from probes.inputs import Batch
    from probes.subject import Subject


def atlas(
    of: Subject | Run | str | Path,
    inputs: Batch | Iterable[Batch] | str | Path | None = None,
    *,
    samples: int = 20_000,
    side: int = 64,
    space: Space = "both",
    clusters: str | int = "auto",
    exemplars: bool = True,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Listener | None = None,
) -> Atlas:
    """What kinds of attention the heads of a model make, on many inputs, as one map.

    Args:
        of: a subject, which is run twice over the inputs; or a run (or its folder) that has kept
            patterns, of which another map is made without the model.
        inputs: of a subject: a batch, several, or data as for `hs.score`; by default the bundled
            set that fits.
        samples: most patterns in all; every head gets as many. This, `side`, `exemplars` and the
            inputs are a run's own where its patterns are mapped again.
        side: pooled patterns are so many cells wide and high.
        space: patterns are compared by their ``features``, by the autoencoder's ``latent``, or
            both.
        clusters: ``auto``, ``mixture``, ``kmeans`` or ``hdbscan``, of which stability chooses how
            many there are; or a number.
        exemplars: whether the strongest and the usual events of each head are kept as well.
        limit, batch_size: of data that are read.
        seed: of the samples, the autoencoder, the map and the clusters.
        progress: called whenever a stage of the work begins, gets on or ends.

    Returns:
        Points, clusters, what each head's patterns are, prototypes, patterns and exemplars.

    Raises:
        ValueError: too few patterns, no attention that can be captured, a run without patterns.
    """
    from analysis.progress import Progress
    from probes.subject import Subject

    how = atlas_options(samples, side, space, clusters, exemplars)
    if not isinstance(of, Subject):
        if inputs is not None:
            raise AskedWrongly("`inputs` must come with a subject: a run's patterns are drawn.")
        return _again(of, how, seed, Progress(progress, of="atlas"))
    from analysis.atlas.study import AtlasStudy
    from analysis.tally import Tally
    from headscope.plan import default_data
    from headscope.scoring import data_of, left_out, skipping

    skipped: dict[str, str] = {}
    options = Options(limit=limit, batch_size=batch_size, seed=seed)
    inputs = default_data(of) if inputs is None else inputs
    data = data_of(of, inputs, options, skipping(skipped, strict=False), again=True)
    study = AtlasStudy(how, seed, progress=Progress(progress, of="atlas"))
    study.refuse(of, data)
    study.begin(of, data)
    study.finish(of, data, Tally(replicates=1))
    assert study.atlas is not None
    if skipped:
        drawn = study.atlas.patterns.samples["example"].nunique()
        warnings.warn(left_out(skipped, drawn), stacklevel=2)
    return _with_map(study.atlas)


def atlas_options(
    samples: int, side: int, space: Any, clusters: str | int, exemplars: bool
) -> AtlasOptions:
    """The options of an atlas.

    Raises:
        AskedWrongly: one of them makes no sense.
    """
    try:
        return AtlasOptions(samples, side, space, str(clusters), exemplars)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def map_again(
    run: Run, name: str, how: AtlasOptions, seed: int, progress: Listener | None = None
) -> Atlas:
    """Another map of the patterns that a run has kept, written as a section of its own.

    Raises:
        RunError: the section's name is taken.
        ValueError: the run has kept no patterns.
    """
    from analysis.atlas.study import head_lines
    from analysis.head_table import HeadTable
    from analysis.progress import Progress
    from analysis.run_folder import new_section, refuse_section

    refuse_section(run.path, name)
    made = _again(run, how, seed, Progress(progress, of="atlas"))
    with new_section(run.path, name, {"studies": {"atlas": []}, "options": made.about}) as folder:
        lines = head_lines(made.head_mix, f"{run.plan['data']['inputs']} ({name})")
        HeadTable(lines, run.plan["layers"]).to_parquet(folder / "heads.parquet")
        made.save(folder)
    return made


def _again(of: Run | str | Path, how: AtlasOptions, seed: int, progress: Any) -> Atlas:
    from analysis.atlas.atlas import ABOUT, SECTION, Kept, make_atlas
    from analysis.atlas.atlas_files import read_about
    from analysis.run_folder import open_run

    run = open_run(of) if isinstance(of, (str, Path)) else of
    folder = run.path / SECTION
    if not (folder / ABOUT).is_file():
        if not run.finished and SECTION in run.plan["studies"]:
            raise ValueError(
                f"Run {str(run.path)!r} is unfinished and has kept no patterns yet. Go on with it: "
                "give its command again, with `--resume`."
            )
        model, data = run.plan["model"]["name"], run.plan["data"]["name"]
        command = shlex.join(["headscope", "atlas", model, "--data", data])
        raise ValueError(f"Run {str(run.path)!r} has kept no patterns. Draw some with: {command}")
    known = read_about(folder)["options"]
    # What was drawn stays as it is: only the map is made anew.
    how = replace(how, **{name: known[name] for name in ("samples", "side", "exemplars")})
    return _with_map(make_atlas(Kept.load(folder), how, seed, progress))


def _with_map(found: Atlas) -> Atlas:
    """The same atlas.

    Raises:
        ValueError: it has no map of any tower.
    """
    if not found.about["towers"]:
        raise ValueError(found.verdict)
    return found
