"""`headscope sae features`: save all features of a coder, to look at them in the app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.options import (
    BatchSize,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Limit,
    Revision,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.sae_options import CoderData, Context, Folder, OfModel, OfSite, OtherModel


def features(
    folder: Folder,
    model: OfModel = None,
    data: CoderData = None,
    latents: Annotated[
        int, typer.Option(help="How many get examples: those that fire most often.")
    ] = 1024,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder. Default: features, in the coder's own folder.", show_default=False
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="A finished run, to which it is added.", show_default=False),
    ] = None,
    site: OfSite = "",
    context: Context = None,
    other_model: OtherModel = False,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Save where every feature fires, by which heads, words and patches: for the app."""
    from headscope.cli.screen import print_json, print_lines, waiting
    from headscope.coding.feature_index import index_features, index_folder
    from headscope.coding.opened import model_of, open_coders
    from headscope.plan import AskedWrongly
    from sae.feature_index.form import Amounts
    from sae.feature_index.writing import refuse_taken_index

    if latents < 1:
        raise AskedWrongly(f"`--latents` must be at least 1, got {latents}.")
    refuse_taken_index(index_folder(folder, out, into, site))
    name = model or model_of(open_coders(folder))
    subject = load_subject(name, dtype, device, device_map, revision, trust_remote_code)
    with waiting(f"Reading {folder}, twice"):
        found = index_features(
            folder,
            subject,
            data,
            out=out,
            into=into,
            site=site,
            amounts=Amounts(latents=latents),
            limit=limit,
            batch_size=batch_size,
            context=context,
            other_model=other_model,
        )
    about = found.about
    if as_json:
        print_json({"out": str(found.path), **{k: about[k] for k in _TOLD}})
        return
    size = sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())
    print_lines(
        f"{about['latents']:,} features of {about['site']} on {about['examples']:,} examples "
        f"({about['rows']:,} positions): {about['dead']:,} never fire, {about['followed']:,} have "
        "examples.",
        *(about[why] for why in ("no_words", "no_attribution") if about[why]),
        f"Wrote {size / 1e6:.1f} MB to {found.path}. Look at it: headscope app {found.path}",
    )


_TOLD = ("site", "latents", "rows", "examples", "dead", "followed", "no_words", "no_attribution")
