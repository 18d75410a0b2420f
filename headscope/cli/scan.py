"""`headscope scan`: which heads differ between a behaviour and a control, and does it need them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.cli.options import (
    BatchSize,
    Device,
    DeviceMap,
    Draws,
    Dtype,
    Json,
    Label,
    Model,
    Revision,
    TrustRemoteCode,
    load_subject,
)
from headscope.cli.resuming import interruptible


def scan(
    model: Model,
    control: Annotated[
        str, typer.Option(help="Data that differ from --data in nothing but the behaviour.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Data that call for the behaviour. Default: the bundled set that fits."),
    ] = None,
    measure: Annotated[
        str,
        typer.Option(help="activity (the length of what a head writes) or a streaming measure."),
    ] = "activity",
    variant: Annotated[
        str, typer.Option(help="Variant of the measure, where it has several.")
    ] = "",
    towers: Annotated[
        str, typer.Option(help="Names separated by commas. Default: the one that writes, else all.")
    ] = "",
    where: Annotated[
        str,
        typer.Option(
            help="For activity: last (positions of the prompt), answer, text or all. Default: "
            "answer where examples have one, else last."
        ),
    ] = "",
    last: Annotated[int, typer.Option(help="How many positions `last` takes.")] = 4,
    paired: Annotated[
        bool, typer.Option("--paired", help="Examples with one id in both sets belong together.")
    ] = False,
    side: Annotated[
        str,
        typer.Option(
            help="Take away heads whose value is higher on the behaviour (more), lower (less), or "
            "the farthest apart (either)."
        ),
    ] = "more",
    top: Annotated[
        str, typer.Option(help="How many heads are taken away together; 0: none.")
    ] = "1,2,4,8",
    randoms: Annotated[int, typer.Option(help="Most random sets of heads beside each.")] = 20,
    permutations: Annotated[
        int, typer.Option(help="Random splits of the examples that p rests on.")
    ] = 9_999,
    effect: Annotated[
        str,
        typer.Option(
            help="What the loss is told by: cross_entropy, probability, logit, margin, accuracy, "
            "jsd, flip or cosine. Default: what fits."
        ),
    ] = "",
    ablation: Annotated[
        str, typer.Option(help="What stands in for a head: zero, mean, mean:role or resample.")
    ] = "mean",
    label: Label = "",
    draws: Draws = 5,
    limit: Annotated[
        int | None, typer.Option(help="Read at most so many examples of each set.")
    ] = None,
    batch_size: BatchSize = 8,
    seed: Annotated[
        int, typer.Option(help="Of splits, halves, random heads, the bootstrap and donors.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/MODEL-DATA-against-CONTROL-TIME.")
    ] = None,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare every head on a behaviour and a control, and take the farthest away."""
    from analysis.importance.scans.options import ScanOptions
    from headscope.plan import Options, default_data, default_folder, inputs_name, names_in
    from headscope.scanning import asked_wrongly, refuse_same, refuse_unknown

    words: Any = {"where": where, "side": side}  # what these may be is checked there
    with asked_wrongly():
        how = ScanOptions(
            measure, variant, tuple(names_in(towers)), last=last, paired=paired, top=_sizes(top),
            randoms=randoms, permutations=permutations, **words,
        )  # fmt: skip
    options = Options(
        limit=limit, batch_size=batch_size, seed=seed, effect=effect, ablation=ablation,
        label=label, draws=draws,
    )  # fmt: skip
    refuse_same(data, control)
    refuse_unknown(how, options)  # before the model is loaded
    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    data = data or default_data(subject)
    refuse_same(data, control)
    both = f"{Path(inputs_name(data)).stem}-against-{Path(inputs_name(control)).stem}"
    _run(subject, data, control, out or default_folder(model, both), how, options, as_json)


def _run(
    subject: Any, data: str, control: str, out: Path, how: Any, options: Any, as_json: bool
) -> None:
    from headscope.cli.progress_bars import stages
    from headscope.cli.run_report import print_run
    from headscope.scan_run import scan_run

    title = f"{subject.name} on {data} against {control}"
    left = "nothing was finished: start again."
    with interruptible(lambda: left), stages(title) as listener:
        run = scan_run(subject, data, control, out, how, options, listener)
    print_run(run, as_json)


def _sizes(text: str) -> tuple[int, ...]:
    from headscope.plan import AskedWrongly, names_in

    try:
        sizes = tuple(int(word) for word in names_in(text))
    except ValueError as error:
        raise AskedWrongly(
            f"`--top` must be numbers of heads separated by commas, such as 1,2,4, got {text!r}."
        ) from error
    return () if sizes == (0,) else sizes
