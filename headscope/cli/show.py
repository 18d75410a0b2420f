"""`headscope show`: look at a run, an evaluation or a training of coders, with no model at hand."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli.options import Json


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its folder; a coder's, too.")],
    every_variant: Annotated[
        bool, typer.Option("--all", help="Every variant of every measure.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a run or a training of coders, finished or not, a coder, or a finished evaluation."""
    from pathlib import Path

    from headscope.coding.described import what_is
    from headscope.evaluating.evaluation_folder import is_evaluation

    folder = Path(run).expanduser()
    if what_is(folder) is not None:
        from headscope.cli.coding_report import print_coding

        print_coding(folder, as_json)
        return
    if is_evaluation(folder):
        from headscope.cli.evaluation_report import print_evaluation
        from headscope.evaluating.result import open_evaluation

        print_evaluation(open_evaluation(run), as_json)
        return
    from analysis.run_files import RunError
    from analysis.run_folder import open_run
    from headscope.cli.run_report import print_run

    found = open_run(run)
    if "model" not in found.plan:  # begun between the two looks, or by a later version
        raise RunError(f"{folder} holds a run that is just being begun. Look again in a moment.")
    print_run(found, as_json, every_variant)
