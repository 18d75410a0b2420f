"""What a verb says when it is stopped, and how the same command goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

INTERRUPTED = 130
"""The exit code of shells for a program that Ctrl-C ended."""


class Told(int):
    """An exit code whose sentence has been printed."""


def refuse_resume_without(out: Path | None, resume: bool) -> None:
    """Nothing, unless a run shall go on and its folder is not named.

    Raises:
        AskedWrongly: ``resume`` without ``out``.
    """
    if resume and out is None:
        from headscope.plan import AskedWrongly

        raise AskedWrongly("`--resume` needs `--out`, the folder of the unfinished run.")


@contextmanager
def interruptible(what_is_left: Callable[[], str]) -> Iterator[None]:
    """Tells what is left of the block's work if Ctrl-C or a full disk ends it.

    Args:
        what_is_left: gives a sentence without its capital, such as ``nothing was scored yet: start
            again.``

    Raises:
        typer.Exit: after Ctrl-C, with code 130.
        DiskFull: the sentences of the one inside, and this one.
    """
    from analysis.atomic_file import DiskFull
    from headscope.cli.screen import note

    try:
        yield
    except KeyboardInterrupt:
        note(f"Interrupted; {what_is_left()}")
        raise typer.Exit(Told(INTERRUPTED)) from None
    except DiskFull as error:
        left = what_is_left()
        raise DiskFull(f"{error} {left[0].upper()}{left[1:]}") from error


def command_to_go_on(out: Path) -> str:
    """The command that was given, with ``--resume`` and the folder that it wrote to."""
    import shlex

    given = [word for word in sys.argv[1:] if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in given):
        given += ["--out", str(out)]
    return f"headscope {shlex.join(given)} --resume"
