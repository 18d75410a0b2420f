"""`headscope sae attribute`: what a feature reads and writes, and what a head's features are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from headscope.coding.feature_reading import FeatureReading


def attribute(
    folder: Folder,
    model: OfModel = None,
    latent: Annotated[int | None, typer.Option(help="Number of a feature, from 0.")] = None,
    head: Annotated[
        str, typer.Option(help="A head such as language.L2H3: the features it has most of.")
    ] = "",
    data: CoderData = None,
    site: OfSite = "",
    examples: Annotated[
        int, typer.Option(help="How many of its strongest examples, or of a head's features.")
    ] = 5,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a page of each example, drawn on its picture and text, and one of "
            "the heads. Pages are single files that open without a network.",
            show_default=False,
        ),
    ] = None,
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
    """Tell which heads, words and patches make a feature fire, and what it speaks for."""
    from headscope.cli.feature_report import print_feature, print_head
    from headscope.cli.screen import waiting
    from headscope.coding.feature_pages import refuse_file
    from headscope.coding.feature_reading import read_feature
    from headscope.coding.head_reading import read_head
    from headscope.coding.opened import model_of, open_coders
    from headscope.plan import AskedWrongly

    if (latent is None) == (not head):
        raise AskedWrongly("Give either `--latent` or `--head`, such as `--head language.L2H3`.")
    if examples < 1:
        raise AskedWrongly(f"`--examples` must be at least 1, got {examples}.")
    if figures is not None and latent is None:
        raise AskedWrongly("`--figures` needs `--latent`: pages are of a feature's examples.")
    if figures is not None:
        refuse_file(figures)
    name = model or model_of(open_coders(folder))
    subject = load_subject(name, dtype, device, device_map, revision, trust_remote_code)
    how = {
        "site": site,
        "limit": limit,
        "batch_size": batch_size,
        "context": context,
        "other_model": other_model,
    }
    with waiting(f"Reading {folder}"):
        if latent is not None:
            feature = read_feature(folder, latent, subject, data, examples=examples, **how)
        else:
            of_head = read_head(folder, head, subject, data, features=examples, **how)
    if latent is None:
        print_head(of_head, as_json)
        return
    print_feature(feature, as_json)
    if figures is not None:
        _write(feature, figures)


def _write(feature: FeatureReading, folder: Path) -> None:
    from headscope.cli.screen import note, waiting
    from headscope.coding.feature_pages import write_feature_pages

    with waiting(f"Drawing in {folder}"):
        pages = write_feature_pages(feature, folder)
    missing = len(feature.views) - (len(pages) - 1)
    lost = f" Of {missing} examples neither words nor patches can be drawn." if missing else ""
    note(f"Wrote {len(pages)} pages to {folder}: {pages[0].name}, ...{lost}")
