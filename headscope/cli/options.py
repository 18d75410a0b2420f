"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
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
Data = Annotated[
    str | None,
    typer.Option(
        help="A bundled set, a folder of images, a text file, a JSONL, or hf:NAME:SPLIT. "
        "Default: the bundled set that fits."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Read at most so many examples.")]
BatchSize = Annotated[int, typer.Option(help="Examples per forward.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first example that cannot be used.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/MODEL-DATA-TIME.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")]
Label = Annotated[
    str, typer.Option(help="Field of the data with the class, or predicted: the model's own.")
]
Draws = Annotated[int, typer.Option(help="Donors per example of resample ablation.")]
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


def read_vocabulary(synonyms: Path | None) -> Any:
    """The vocabulary in a user's file, None without one."""
    if synonyms is None:
        return None
    from analysis.hallucination.vocabulary import Vocabulary

    return Vocabulary.read(synonyms)


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
