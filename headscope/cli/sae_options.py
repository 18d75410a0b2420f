"""Options that the verbs of `headscope sae` share."""

from __future__ import annotations

from typing import Annotated

import typer

Folder = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="A trained coder, the folder of a training, one of SAELens, sparsify or "
        "dictionary_learning, or the name of a bundled one (`headscope models`).",
        show_default=False,
    ),
]
OfModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A bundled name, a folder, a hub id, or timm:NAME. Default: the model that the coder "
        "was trained on.",
        show_default=False,
    ),
]
CoderData = Annotated[
    str | None,
    typer.Option(
        help="A bundled set, a folder of images, a text file, a JSONL, or hf:NAME:SPLIT. "
        "Default: what the coder was trained on, else the bundled set that fits."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(help="Cut longer texts into examples of at most so many tokens."),
]
OfSite = Annotated[
    str,
    typer.Option(
        "--site",
        help="Which coder of a training; or where one belongs that does not say it itself.",
    ),
]
OtherModel = Annotated[
    bool,
    typer.Option("--other-model", help="Use a model that the coder was not trained on, too."),
]
