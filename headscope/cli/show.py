"""`headscope show`: look at a run or an evaluation, with no model at hand."""

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
    """Show a run, finished or still being written, or a finished evaluation."""
    from pathlib import Path

    from headscope.evaluating.evaluation_folder import is_evaluation

    if is_evaluation(Path(run).expanduser()):
        from headscope.cli.evaluation_report import print_evaluation
        from headscope.evaluating.result import open_evaluation

        print_evaluation(open_evaluation(run), as_json)
        return
    from analysis.run_folder import open_run
    from headscope.cli.run_report import print_run

    print_run(open_run(run), as_json, every_variant)
