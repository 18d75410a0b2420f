"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A bundled name (`headscope models`), a folder, a hub id, or timm:NAME.",
        show_default=False,
    ),
]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EDIT",
        help="What is changed, such as vhr:alpha=2; may be given several times.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16 or auto. Default: that of the checkpoint.",
        rich_help_panel="Loading the model",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, mps. Default: the first GPU, else the CPU.",
        rich_help_panel="Loading the model",
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="auto: spread over devices.", rich_help_panel="Loading the model"),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub model.", rich_help_panel="Loading the model"),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. Read it first.",
        rich_help_panel="Loading the model",
    ),
]


def load_subject(
    model: str,
    dtype: str | None,
    device: str | None,
    device_map: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> Any:
    """The subject that a verb was asked for."""
    from headscope.cli.screen import waiting

    with waiting(f"Loading {model}"):
        from probes.loading import load

        return load(
            model,
            dtype=dtype,
            device=device,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
