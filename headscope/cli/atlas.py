"""`headscope atlas`: what kinds of attention the heads of a model make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Limit,
    Out,
    Resume,
    Revision,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.resuming import interruptible, refuse_resume_without

_OF_MODELS = (
    "data", "samples", "side", "exemplars", "measures", "limit", "batch_size", "out", "resume",
)  # fmt: skip


def atlas(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="A bundled name, a folder, a hub id, or timm:NAME; or the folder of a run that "
            "kept patterns, of which another map is made without the model.",
            show_default=False,
        ),
    ],
    data: Data = None,
    samples: Annotated[
        int, typer.Option(help="Most patterns in all; every head gets as many.")
    ] = 20_000,
    side: Annotated[
        int, typer.Option(help="Patterns are pooled to so many cells wide and high.")
    ] = 64,
    space: Annotated[
        str, typer.Option(help="Compare patterns by features, by the latent, or by both.")
    ] = "both",
    clusters: Annotated[
        str,
        typer.Option(
            help="mixture, kmeans or hdbscan, their number chosen by stability; or a number."
        ),
    ] = "auto",
    exemplars: Annotated[
        bool,
        typer.Option(help="Keep the strongest and the usual events of each head as well."),
    ] = True,
    measures: Annotated[
        str, typer.Option(help="Streaming measures of the run beside the atlas.")
    ] = "all",
    limit: Limit = None,
    batch_size: BatchSize = 8,
    seed: Annotated[
        int, typer.Option(help="Of samples, autoencoder, map, clusters and bootstrap.")
    ] = 0,
    section: Annotated[
        str, typer.Option(help="Of a RUN: the name of the section that the new map goes to.")
    ] = "",
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Draw patterns of every head, lay them out as a map, and name what lies together."""
    from analysis.run_files import PLAN
    from headscope.cli.score import run_scoring
    from headscope.pattern_atlas import atlas_options
    from headscope.plan import AskedWrongly, Options, default_data, default_folder

    how = atlas_options(samples, side, space, clusters, exemplars)
    if (Path(model).expanduser() / PLAN).is_file():
        given = [name for name in _OF_MODELS if _was_given(context, name)]
        if given:
            option = "--" + given[0].replace("_", "-")
            raise AskedWrongly(
                f"`{option}` must come with a model: the patterns of a run are drawn already."
            )
        _map_again(model, section, how, seed, as_json)
        return
    if section:
        raise AskedWrongly("`--section` must come with the folder of a run, not with a model.")
    refuse_resume_without(out, resume)
    names = ",".join(name for name in (measures, "atlas") if name)
    options = Options(names, limit, batch_size, seed, atlas=how)
    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    data = data or default_data(subject)
    out = out or default_folder(model, data)
    run_scoring(subject, data, out, options, resume, as_json)
    _refuse_no_map(out)


def _refuse_no_map(out: Path) -> None:
    """Nothing, if a finished run has the map that was asked for.

    Raises:
        ValueError: it has none of any tower; all else is there.
    """
    from analysis.atlas.atlas_files import SECTION, read_about

    about = read_about(out / SECTION)
    if not about["towers"]:
        raise ValueError(f"{about['verdict']} All else is in {out}.")


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _map_again(folder: str, section: str, how: Any, seed: int, as_json: bool) -> None:
    from analysis.run_folder import open_run
    from headscope.cli.atlas_report import atlas_record, print_atlas
    from headscope.cli.progress_bars import stages
    from headscope.cli.screen import print_json
    from headscope.pattern_atlas import map_again
    from headscope.plan import AskedWrongly

    run = open_run(folder)
    if not section:
        raise AskedWrongly(
            "A new map of a run's patterns must go to a section of its own. Name one, such as "
            "`--section atlas_2`; what the run has is shown by `headscope show`."
        )
    left = "the section is unfinished: start again."
    with interruptible(lambda: left), stages(f"patterns of {folder}") as shown:
        map_again(run, section, how, seed, shown)
    run = open_run(folder)
    if as_json:
        print_json(atlas_record(run.sections[section]))
    else:
        print_atlas(run, section)
