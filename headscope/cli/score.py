"""`headscope score`: score every head of a model into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceMap,
    Draws,
    Dtype,
    Json,
    Label,
    Limit,
    Model,
    Out,
    Resume,
    Revision,
    Strict,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.resuming import command_to_go_on, interruptible, refuse_resume_without


def score(
    model: Model,
    data: Data = None,
    measures: Annotated[
        str,
        typer.Option(
            help="Names separated by commas; all: every streaming measure that applies. Costly "
            "groups, such as importance, run the model more often and are named."
        ),
    ] = "all",
    effect: Annotated[
        str,
        typer.Option(
            help="What a head's loss is told by: cross_entropy, probability, logit, margin, "
            "accuracy, jsd, flip, cosine, layer_cosine, layer_jsd; several with commas. Default: "
            "what fits."
        ),
    ] = "",
    ablation: Annotated[
        str,
        typer.Option(
            help="What stands in for a head: zero, mean, mean:role, resample, uniform, "
            "mean_pattern or knock_out:text->image."
        ),
    ] = "mean",
    label: Label = "",
    draws: Draws = 5,
    copies: Annotated[
        int, typer.Option(help="Ablated copies of a batch run at once; more may pay on a GPU.")
    ] = 1,
    graddrop: Annotated[
        bool, typer.Option("--graddrop", help="For atp: a backward per layer more.")
    ] = False,
    image_removal: Annotated[
        str,
        typer.Option(help="For vhd: delete the image's positions, or show blank or noise."),
    ] = "delete",
    answers: Annotated[
        str,
        typer.Option(
            help="For vhd: read given answers, the model's own, or auto: own if objects are known."
        ),
    ] = "auto",
    limit: Limit = None,
    batch_size: BatchSize = 8,
    seed: Annotated[
        int,
        typer.Option(help="Of the bootstrap, and of what studies draw (donors, shuffled targets)."),
    ] = 0,
    strict: Strict = False,
    out: Out = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print size, memory and time; write nothing.")
    ] = False,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score every head of a model on some data."""
    from headscope.plan import Options, default_data, default_folder
    from headscope.scorer import chosen_measures, chosen_studies, split_names

    refuse_resume_without(out, resume)
    how = Options(
        measures,
        limit,
        batch_size,
        seed,
        strict=strict,
        effect=effect,
        ablation=ablation,
        label=label,
        draws=draws,
        copies=copies,
        graddrop=graddrop,
        image_removal=image_removal,
        answers=answers,
    )
    streaming, studies = split_names(measures)
    if streaming or not studies:
        chosen_measures(streaming)  # a misspelt name is said before the model is loaded
    chosen_studies(studies, how)
    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    data = data or default_data(subject)
    if dry_run:
        _print_estimate(subject, data, how, as_json)
        return
    run_scoring(subject, data, out or default_folder(model, data), how, resume, as_json)


def run_scoring(subject: Any, data: str, out: Path, how: Any, resume: bool, as_json: bool) -> None:
    """Score into a run folder and print it; says how to go on after Ctrl-C or a full disk."""
    from headscope.cli.progress_bars import stages
    from headscope.cli.run_report import print_run
    from headscope.runs import score_run

    title = f"{subject.name} on {data}"
    with interruptible(lambda: _what_is_safe(out)), stages(title) as show_progress:
        run = score_run(subject, data, out, how, resume=resume, progress=show_progress)
    print_run(run, as_json)


def _what_is_safe(out: Path) -> str:
    from analysis.run_files import PLAN
    from analysis.run_folder import open_run

    done, total = open_run(out).shards if (out / PLAN).exists() else (0, 0)
    if done == 0:
        return "nothing was scored yet: start again."
    return f"{done} of {total} shards are safe in {out}, go on with: {command_to_go_on(out)}"


def _print_estimate(subject: Any, data: str, how: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from headscope.cli.screen import print_json, print_lines
    from headscope.estimate import estimate

    found = estimate(subject, data, how)
    if as_json:
        print_json(asdict(found))
        return
    print_lines(*found.lines())
