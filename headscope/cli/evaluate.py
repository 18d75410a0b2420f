"""`headscope evaluate`: what a model makes up about images, with and without edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Edits,
    Json,
    Limit,
    Model,
    Out,
    Resume,
    Revision,
    Strict,
    TrustRemoteCode,
    load_subject,
    read_vocabulary,
)
from headscope.cli.resuming import command_to_go_on, interruptible, refuse_resume_without


def evaluate(
    model: Model,
    task: Annotated[
        str,
        typer.Option(
            help="chair: describe every image. pope: yes/no questions about objects that are "
            "there and that are not."
        ),
    ] = "chair",
    data: Annotated[
        str | None,
        typer.Option(
            help="A JSONL with image and objects (pope: or question and answer), a bundled set, "
            "or hf:NAME:SPLIT. Default for bundled models: scenes-broken."
        ),
    ] = None,
    edit: Edits = None,
    control: Annotated[
        int,
        typer.Option(help="Random-head controls per edit: as many heads, moved by as much."),
    ] = 1,
    question: Annotated[
        str,
        typer.Option(
            help="chair: what is asked about every image. pope: the wording, with {object} and "
            "{a}. Default: the data's own, else the papers'."
        ),
    ] = "",
    synonyms: Annotated[
        Path | None,
        typer.Option(
            help='A JSON file such as {"couch": ["sofa"]}: what counts as an object. Default: '
            "what the data name."
        ),
    ] = None,
    distinct: Annotated[
        bool, typer.Option("--distinct", help="chair: count each object once per caption.")
    ] = False,
    strict_answers: Annotated[
        bool,
        typer.Option("--strict-answers", help="pope: an answer without yes or no is wrong."),
    ] = False,
    probe: Annotated[
        str,
        typer.Option(
            help="chair: beginning of an answer, with {field} for fields of the data; needs "
            "--continuation, whose probability is measured."
        ),
    ] = "",
    continuation: Annotated[
        str, typer.Option(help="See --probe; a space in front of it is part of it.")
    ] = "",
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that are answered together.")] = 8,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of an answer. Default: chair 128, pope 8.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of the bootstrap, the controls and pope's random objects.")
    ] = 0,
    strict: Strict = False,
    out: Out = None,
    resume: Resume = False,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Count what a model makes up about images, and what edits and their controls change.

    An edit is NAME or NAME:PARAMETER=VALUE,PARAMETER=VALUE; + joins several items of a value, as
    in zero:heads=language.L3H5+language.L4.
    """
    from headscope.evaluating.conditions import conditions_of
    from headscope.evaluating.evaluation_plan import EvaluationOptions
    from headscope.plan import AskedWrongly, default_folder

    refuse_resume_without(out, resume)
    if bool(probe) != bool(continuation):
        raise AskedWrongly("`--probe` and `--continuation` go together. Give both or neither.")
    how = EvaluationOptions(
        controls=control,
        question=question,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        vocabulary=read_vocabulary(synonyms),
        distinct=distinct,
        strict_answers=strict_answers,
        probe=(probe, continuation) if probe else None,
        seed=seed,
        strict=strict,
    )
    conditions_of(edit or (), control, seed)  # a misspelt edit is said before the model is loaded
    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    data = data or _default_data(subject)
    out = out or default_folder(model, data)
    _run(subject, data, task, edit or (), how, out, resume, as_json)


def _default_data(subject: Any) -> str:
    from headscope.evaluation import refuse_subject
    from headscope.plan import AskedWrongly, default_data

    refuse_subject(subject)
    found = default_data(subject)
    if found != "scenes" or subject.name == "":
        raise AskedWrongly("`--data` must name images with their objects. Give it.")
    return "scenes-broken"


def _run(
    subject: Any,
    data: str,
    task: str,
    edits: Any,
    how: Any,
    out: Path,
    resume: bool,
    as_json: bool,
) -> None:
    from headscope.cli.evaluation_report import print_evaluation
    from headscope.cli.screen import progress
    from headscope.evaluation import evaluate as run

    title = f"{subject.name} on {data}"
    with interruptible(lambda: _what_is_safe(out)), progress(title) as show_progress:
        found = run(subject, data, task, edits, how, out=out, resume=resume, progress=show_progress)
    print_evaluation(found, as_json)


def _what_is_safe(out: Path) -> str:
    from headscope.evaluating.evaluation_folder import answered

    if not answered(out):
        return "nothing was answered yet: start again."
    return f"what was answered is safe in {out}, go on with: {command_to_go_on(out)}"
