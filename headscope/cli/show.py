"""`headscope show`: look at a run, with no model at hand."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.options import Json


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's folder.")],
    every_variant: Annotated[
        bool, typer.Option("--all", help="Every variant of every measure.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a run, finished or still being written."""
    from analysis.run_folder import open_run
    from headscope.cli.run_report import print_run

    print_run(open_run(run), as_json, every_variant)
