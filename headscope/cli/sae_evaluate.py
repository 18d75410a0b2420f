"""`headscope sae evaluate`: what trained coders are worth."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.options import (
    BatchSize,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Label,
    Limit,
    Revision,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.sae_options import CoderData, Context, Folder, OfModel, OfSite, OtherModel


def evaluate(
    folder: Folder,
    model: OfModel = None,
    data: CoderData = None,
    site: OfSite = "",
    baselines: Annotated[
        str, typer.Option(help="Among random, pca and untrained, each at the same L0; or none.")
    ] = "random,pca,untrained",
    label: Label = "",
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
    """Judge coders beside baselines: fidelity, latents, loss recovered with intervals.

    Of the data that a coder was trained on, the held-out examples are judged; of other data, one
    half, and baselines are fitted on the other.
    """
    from dataclasses import replace

    from headscope.cli.coder_report import print_evaluations
    from headscope.cli.progress_bars import stages
    from headscope.coding.evaluating import evaluate_coder, refuse_baselines
    from headscope.coding.opened import model_of, open_coder, open_coders
    from headscope.plan import names_in

    wanted = [] if baselines == "none" else names_in(baselines)
    refuse_baselines(wanted)
    coders = open_coders(folder)
    if site and len(coders) > 1:
        coders = {site: open_coder(folder, site)}
    chosen = model or model_of(coders)
    subject = load_subject(chosen, dtype, device, device_map, revision, trust_remote_code)
    found = []
    with stages(f"{folder} on {chosen}") as shown:
        for title, coder in coders.items():
            one = evaluate_coder(
                coder,
                subject,
                data,
                site=site,
                baselines=wanted,
                context=context,
                limit=limit,
                batch_size=batch_size,
                label=label,
                other_model=other_model,
                progress=shown,
            )
            found.append(replace(one, coder=f"{title}: {one.coder}"))
    print_evaluations(found, as_json)
