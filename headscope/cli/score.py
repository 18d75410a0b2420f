"""`headscope score`: score every head of a model into a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    load_subject,
)

_INTERRUPTED = 130


def score(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(
            help="A bundled set, a folder of images, a text file, a JSONL, or hf:NAME:SPLIT. "
            "Default: the bundled set that fits."
        ),
    ] = None,
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
    label: Annotated[
        str,
        typer.Option(help="Field of the data with the class, or predicted: the model's own."),
    ] = "",
    draws: Annotated[int, typer.Option(help="Donors per example of resample ablation.")] = 5,
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
    limit: Annotated[int | None, typer.Option(help="Read at most so many examples.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per forward.")] = 8,
    seed: Annotated[
        int,
        typer.Option(help="Of the bootstrap, and of what studies draw (donors, shuffled targets)."),
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first example that cannot be scored.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/MODEL-DATA-TIME.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")
    ] = False,
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
    from headscope.plan import AskedWrongly, Options, default_data, default_folder
    from headscope.scorer import chosen_measures, chosen_studies, split_names

    if resume and out is None:
        raise AskedWrongly("`--resume` needs `--out`, the folder of the unfinished run.")
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
    from analysis.atomic_file import DiskFull
    from headscope.cli.progress_bars import stages
    from headscope.cli.run_report import print_run
    from headscope.cli.screen import note
    from headscope.runs import score_run

    try:
        with stages(f"{subject.name} on {data}") as show_progress:
            run = score_run(subject, data, out, how, resume=resume, progress=show_progress)
    except KeyboardInterrupt:
        note(f"Interrupted; {_how_to_go_on(out)}")
        raise typer.Exit(_INTERRUPTED) from None
    except DiskFull as error:
        raise DiskFull(f"{error} After that, {_how_to_go_on(out)}") from error
    print_run(run, as_json)


def _how_to_go_on(out: Path) -> str:
    import shlex

    from analysis.run_files import PLAN
    from analysis.run_folder import open_run

    done, total = open_run(out).shards if (out / PLAN).exists() else (0, 0)
    if done == 0:
        return "nothing was scored yet: start again."
    given = [word for word in sys.argv[1:] if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in given):
        given += ["--out", str(out)]
    return (
        f"{done} of {total} shards are safe in {out}, go on with: "
        f"headscope {shlex.join(given)} --resume"
    )


def _print_estimate(subject: Any, data: str, how: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from headscope.cli.screen import print_json, print_lines
    from headscope.estimate import estimate

    found = estimate(subject, data, how)
    if as_json:
        print_json(asdict(found))
        return
    print_lines(*found.lines())
