"""`headscope sae train`: autoencoders of the head outputs of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.interrupted_training import what_is_safe
from headscope.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Limit,
    Model,
    Out,
    Resume,
    Revision,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.resuming import interruptible, refuse_resume_without
from headscope.cli.sae_options import Context


def train(
    model: Model,
    sites: Annotated[
        str,
        typer.Option(
            help="Attention layers, separated by commas, such as language.L2,vision.*; all are "
            "trained in the same passes."
        ),
    ],
    data: Data = None,
    coder: Annotated[
        str,
        typer.Option(help="topk, batch_topk, matryoshka, jump_relu, gated or standard."),
    ] = "topk",
    latents: Annotated[
        str, typer.Option(help="Number of features, or how many times the width: 16x.")
    ] = "16x",
    k: Annotated[
        int, typer.Option("--k", help="Active features per position; what jump_relu aims at.")
    ] = 32,
    tokens: Annotated[
        str, typer.Option(help="Positions each site is trained on: 5M, 200k; data are repeated.")
    ] = "5M",
    sweep: Annotated[
        str,
        typer.Option(
            help="Several values of k, latents, sparsity or learning_rate at one site, such as "
            "k=8,16,32; judged beside baselines."
        ),
    ] = "",
    roles: Annotated[
        str,
        typer.Option(
            help="Only positions of these roles: bos, system, text, image, special, cls, register."
        ),
    ] = "",
    context: Context = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the examples that is left for `sae evaluate`; or 0.")
    ] = 0.1,
    store: Annotated[
        Path | None,
        typer.Option(help="Write head outputs to this folder once and train from it."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Positions per optimiser step.")] = "4096",
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak. Default: of the source of this kind of coder.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Weight of the sparsity loss of standard, gated and jump_relu."),
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Products of the coder in bfloat16.")
    ] = False,
    buffer: Annotated[
        str, typer.Option(help="Positions per site that are shuffled together.")
    ] = "131072",
    log_every: Annotated[int, typer.Option(help="Steps between two lines of the metrics.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    seed: Annotated[
        int, typer.Option(help="Of initial weights, order of the data and resampling.")
    ] = 0,
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
    """Train autoencoders of head outputs, one for each site."""
    from headscope.coding import training
    from headscope.plan import default_data, default_folder, names_in
    from sae.training.distributed import own_device

    refuse_resume_without(out, resume)
    _refuse_apart(out)
    config = _settings(
        coder=coder,
        latents=training.latents(latents),
        k=k,
        tokens=training.amount(tokens),
        batch_size=training.amount(rows),
        learning_rate=learning_rate,
        sparsity=sparsity,
        dtype="bfloat16" if bf16 else "float32",
        buffer_rows=training.amount(buffer),
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    configs = training.swept(config, sweep) if sweep else {}
    where = device if device_map else own_device(device)
    subject = load_subject(model, dtype, where, device_map, revision, trust_remote_code)
    data = data or default_data(subject)
    how: dict[str, Any] = {
        "roles": names_in(roles) or None,
        "context": context,
        "held_out": held_out,
        "limit": limit,
        "batch_size": batch_size,
    }
    if dry_run:
        _print_estimate(subject, data, names_in(sites), config, max(len(configs), 1), how, as_json)
        return
    how |= {"store": store, "out": out or default_folder(model, data), "resume": resume}
    if configs:
        _sweep(subject, data, names_in(sites), configs, how, as_json)
    else:
        _train(subject, data, names_in(sites), config, how, as_json)


def _is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _refuse_apart(out: Path | None) -> None:
    """Nothing, if all processes will write to one folder.

    Raises:
        AskedWrongly: several, and no folder was named: each would make one of its own.
    """
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from headscope.plan import AskedWrongly

        raise AskedWrongly("`--out` must be given to several processes. Name a new folder.")


def _settings(**given: Any) -> Any:
    """The settings; what cannot be is said in the words of the command line."""
    from headscope.coding.training import settings
    from headscope.plan import AskedWrongly

    try:
        return settings(**given)
    except AskedWrongly as error:
        text = str(error)
        for name, option in {"batch_size": "--rows", "buffer_rows": "--buffer"}.items():
            text = text.replace(f"`{name}`", f"`{option}`")
        raise AskedWrongly(text) from error


def _train(
    subject: Any, data: str, sites: list[str], config: Any, how: dict[str, Any], as_json: bool
) -> None:
    from headscope.cli.coder_progress import training_shown
    from headscope.cli.coder_report import print_training
    from headscope.coding.training import train_coders

    out: Path = how["out"]
    title = f"{subject.name} on {data}"
    with interruptible(lambda: what_is_safe(out, how["store"])), training_shown(title) as hear:
        coders = train_coders(subject, data, sites=sites, config=config, listener=hear, **how)
    if _is_first():
        print_training(coders, out, as_json)


def _sweep(
    subject: Any,
    data: str,
    sites: list[str],
    configs: Mapping[str, Any],
    how: dict[str, Any],
    as_json: bool,
) -> None:
    from headscope.cli.coder_progress import training_shown
    from headscope.cli.coder_report import print_sweep
    from headscope.coding.training import sweep_coders
    from sae.judging.sweep import TRAINING

    out: Path = how["out"]
    title = f"{subject.name} on {data}"
    with (
        interruptible(lambda: what_is_safe(out, how["store"], TRAINING)),
        training_shown(title) as hear,
    ):
        found = sweep_coders(subject, data, site=sites, configs=configs, listener=hear, **how)
    if _is_first():
        print_sweep(found, out, as_json)


def _print_estimate(
    subject: Any,
    data: str,
    sites: list[str],
    config: Any,
    coders: int,
    how: Mapping[str, Any],
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from headscope.cli.screen import print_json, print_lines
    from headscope.coding.estimate import estimate_training
    from headscope.coding.training import refuse_settings, training_rows

    parts, rows = training_rows(subject, data, sites, seed=config.seed, **how)
    refuse_settings(config, rows)
    found = estimate_training(subject.name, data, len(parts.train), rows, config, coders)
    if as_json:
        print_json({**asdict(found), "seconds": found.seconds})
        return
    print_lines(*found.lines())
