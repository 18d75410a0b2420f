"""Trainings in several processes, a few steps of each in turn."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from child import HERE, ROOT
from measuring import rotated

_WARM_UP = 2


class Contender:
    """A child process that trains a few steps whenever it is asked to."""

    def __init__(self, settings: dict[str, Any], python: str | Path, said: TextIO) -> None:
        """Start it.

        Args:
            said: an empty file for its error stream.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
            "OMP_NUM_THREADS": str(settings["threads"]),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
        }
        self._said = said
        self._process = subprocess.Popen(
            [str(python), str(HERE / "coder_child.py"), json.dumps(settings)],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ready(self) -> None:
        """Returns when it could begin.

        Raises:
            RuntimeError: it ended; with what it said last.
        """
        self._heard()

    def steps(self, count: int) -> dict[str, float]:
        """Seconds that so many steps took, by the wall and in CPU time."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(f"{count}\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # What it died of is told by the next line that does not come.
        return self._heard()

    def _heard(self) -> dict[str, float]:
        pipe = self._process.stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines()
            # A progress bar may write after the error.
            errors = [line for line in said if "Error" in line]
            code = f"exit code {self._process.returncode}"
            raise RuntimeError((errors or said or [code])[-1])
        return json.loads(line)


def rounds(
    contenders: Mapping[str, tuple[dict[str, Any], str | Path]], turns: int, steps: int
) -> tuple[list[dict[str, dict[str, float]]], dict[str, str]]:
    """Seconds of each contender in each turn, another one first each time; and why some failed.

    All processes are there from the start, so that every turn has a ratio of contenders that ran
    within a minute of each other.

    Args:
        contenders: settings of `coder_child.py` and the Python to run it with, by name.
    """
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        children: dict[str, Contender] = {}
        for name, (settings, python) in contenders.items():
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            child = stack.enter_context(Contender(settings, python, said))
            try:
                child.ready()
                child.steps(_WARM_UP)
                children[name] = child
            except RuntimeError as error:
                failed[name] = str(error)
        names: Sequence[str] = list(children)
        taken = [
            {name: children[name].steps(steps) for name in rotated(names, turn)}
            for turn in range(turns if names else 0)
        ]
    return taken, failed
