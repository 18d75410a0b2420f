"""What is left of a training of coders that was stopped, and how it goes on."""

from __future__ import annotations

from pathlib import Path

from headscope.cli.resuming import command_to_go_on


def what_is_safe(out: Path, store: Path | None, part: str = "") -> str:
    """A sentence without its capital, for `interruptible`.

    Args:
        store: where head outputs are written first, if anywhere.
        part: of ``out`` in which the training is; of a sweep, one of its folders.
    """
    from analysis.run_files import MANIFEST
    from sae.activations.store_files import INDEX
    from sae.training.checkpoint import CHECKPOINT, whole_steps

    folder = out / part
    if (folder / MANIFEST).exists():
        return f"the training in {folder} is finished, go on with: {command_to_go_on(out)}"
    steps = whole_steps(folder / CHECKPOINT)
    if store is not None and store.is_dir() and not (store / INDEX).exists():
        return f"the shards in {store} are safe, go on with: {command_to_go_on(out)}"
    if not steps:
        return "no step is safe yet: start again."
    return f"{steps[-1]:,} steps are safe in {folder}, go on with: {command_to_go_on(out)}"
