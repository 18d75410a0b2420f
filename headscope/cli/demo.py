"""`headscope demo`: the main job on bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder in which the runs are made.", metavar="FOLDER")
    ] = Path("runs"),
) -> None:
    """Score the heads of the bundled ViT, LMs and LLaVA, a run folder each."""
    import time

    from headscope.cli.progress_bars import stages
    from headscope.cli.run_report import print_run
    from headscope.cli.screen import print_lines
    from headscope.demo import demo as run_demo

    started = time.monotonic()
    runs = []
    for run in run_demo(stages, out):
        print_run(run, as_json=False)
        print_lines("")
        runs.append(run)
    last = runs[-1]
    measure, tower = "entropy", last.heads.towers[-1]
    print_lines(
        f"{len(runs)} models scored in {time.monotonic() - started:.0f} s.",
        "",
        "What to do next",
        f"  headscope show {last.path}",
        "  headscope inspect shapes-llava                     what can be captured in a model",
        "  headscope score MODEL --data FOLDER_OR_FILE        your model, your images or texts",
        "  In Python or Jupyter:",
        "    import headscope as hs",
        f'    run = hs.open_run("{last.path}")',
        f'    hs.figures.heatmap(run.heads, "{measure}", tower="{tower}")',
    )
