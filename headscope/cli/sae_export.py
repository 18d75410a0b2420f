"""`headscope sae export`: a coder from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli.options import Json
from headscope.cli.sae_options import Folder


def export(
    folder: Folder,
    to: Annotated[str, typer.Option(help="saelens or headscope.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder.", show_default=False)],
    trust_layout: Annotated[
        bool,
        typer.Option(
            "--trust-layout",
            help="Of a coder with as many latents as its width, read which axis is which as its "
            "format documents it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a coder, whichever format it has, for SAELens or for headscope."""
    from typing import get_args

    from headscope.cli.screen import print_json, print_lines
    from headscope.plan import AskedWrongly
    from sae.exchange.formats import Written
    from sae.exchange.formats import export as write

    if to not in get_args(Written):
        raise AskedWrongly(f"`--to` must be one of {', '.join(get_args(Written))}, got {to!r}.")
    path = write(folder, to, out, trust_layout=trust_layout)  # type: ignore[arg-type]
    files = sorted(item.name for item in path.iterdir())
    if as_json:
        print_json({"out": str(path), "to": to, "files": files})
        return
    print_lines(f"Wrote {', '.join(files)} to {path}.")
