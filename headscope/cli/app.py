"""`headscope app`: the dashboard over saved runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def app(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Runs, or folders of runs. Default: runs/.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of this machine.")] = 8501,
    open_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")
    ] = True,
) -> None:
    """Look at runs in the browser. No model is needed, and nothing leaves this machine."""
    from dashboard.serve import serve
    from headscope.plan import AskedWrongly

    given = [place.expanduser() for place in places or [Path("runs")]]
    for place in places or []:
        if not place.expanduser().is_dir():
            raise AskedWrongly(f"RUN must be a folder, {str(place)!r} is none. Check the path.")
    serve([place.resolve() for place in given], port, open_browser)
