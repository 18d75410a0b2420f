"""The main job on the bundled models, end to end: what `headscope demo` and `make demo` run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.plan import Options, default_data
from headscope.runs import score_run

if TYPE_CHECKING:
    from analysis.progress import Listener
    from analysis.run_folder import Run

MODELS = ("shapes-vit", "repeat-lm", "prose-lm", "shapes-llava")
LIMIT = 32


def demo(
    progress: Callable[[str], AbstractContextManager[Listener]], folder: Path = Path("runs")
) -> Iterator[Run]:
    """Score each bundled model on its default set; a finished run in ``folder`` for each.

    Args:
        progress: gives a context in which a title's progress is shown.
    """
    from probes.loading import load

    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    for name in MODELS:
        subject = load(name)
        data = default_data(subject)
        with progress(f"{name} on {data}") as show:
            yield score_run(
                subject, data, folder / f"demo-{name}-{now}", Options(limit=LIMIT), progress=show
            )
