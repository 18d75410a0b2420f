"""The run folder: everything that a scoring produced, readable with no model at hand.

runs/NAME/
  plan.json          written first
  journal/           finished shards and the lock
  heads.parquet      profiles.parquet      examples/
  SECTION/           importance, atlas, vision, sae: added later, each with a manifest
  manifest.json      written last: a folder without it is unfinished
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import drop_half_written, write_json, written_atomically
from analysis.head_table import HeadTable
from analysis.journal import Journal, RunLock
from analysis.run_files import (
    HEADS,
    JOURNAL,
    LOCK,
    MANIFEST,
    PLAN,
    PROFILES,
    SCHEMA,
    RunError,
    digests,
    plan_differences,
    read_json,
    read_table,
    refuse_foreign,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "RunError", "RunFolder", "Section", "new_section", "open_run"]

_OWN = {PLAN, MANIFEST, HEADS, PROFILES, JOURNAL, "examples"}


class RunFolder:
    """The writing side of a run: made by `RunFolder.begin`, held by one process at a time."""

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        self.path = path
        self.plan = plan
        self.journal = Journal(path / JOURNAL)

    @staticmethod
    def refuse_taken(path: Path) -> None:
        """Raise where a new run cannot be written; for what is written when all is done.

        Raises:
            RunError: the folder holds something else or another run.
        """
        _refuse_foreign(path)
        if (path / PLAN).exists():
            _refuse_other_run(path, {}, resume=False)

    @classmethod
    @contextmanager
    def begin(cls, path: Path, plan: Mapping[str, Any], resume: bool) -> Iterator[RunFolder]:
        """A folder to write a run to, locked; the plan stands in it before anything else.

        Nothing is ever deleted but halves of files that a killed process left, and nothing is
        written before all checks have passed.

        Raises:
            RunError: the folder holds something else, a finished run, an unfinished run without
                ``resume``, or a run with another plan. A run without any finished shard counts
                as empty.
            RunLocked: another process is writing it.
        """
        _refuse_foreign(path)
        with ExitStack() as stack:
            if (path / PLAN).exists():
                # Locked first: what a running process is about to write must not be judged.
                stack.enter_context(RunLock(path / JOURNAL / LOCK))
                _refuse_other_run(path, plan, resume)
            else:
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(RunLock(path / JOURNAL / LOCK))
            drop_half_written(path)
            if not Journal(path / JOURNAL).finished():
                write_json(path / PLAN, plan)
            yield cls(path, plan)

    def finish(self, heads: HeadTable, profiles: pd.DataFrame, manifest: Mapping[str, Any]) -> None:
        """Write the tables, then the manifest with the digests of all that is there."""
        heads.to_parquet(self.path / HEADS)
        with written_atomically(self.path / PROFILES) as temporary:
            profiles.to_parquet(temporary, index=False)
        files = digests(self.path, skip=_sections_in(self.path))
        write_json(self.path / MANIFEST, {"schema": SCHEMA, **manifest, "files": files})


def refuse_section(run: Path, name: str) -> None:
    """Raise where a section of that name cannot be written; for what is written when all is done.

    Raises:
        RunError: the name is taken by the run itself or by a finished section, or is no name.
    """
    if name in _OWN or not name.isidentifier():
        raise RunError(
            f"A section of a run must not be called {name!r}. Choose a name of letters, digits and "
            "underscores."
        )
    if (run / name / MANIFEST).exists():
        raise RunError(f"Section {name!r} of {run} is finished. Use another run, or another name.")


@contextmanager
def new_section(run: Path, name: str, about: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for a section of a finished run; its manifest is written when the block ends well.

    Raises:
        RunError: the name is taken by the run itself or by a finished section.
    """
    refuse_section(run, name)
    path = run / name
    path.mkdir(exist_ok=True)
    yield path
    write_json(path / MANIFEST, {"schema": SCHEMA, **about, "files": digests(path)})


@dataclass(frozen=True)
class Section:
    """A part that was added to a run; without a manifest it is unfinished."""

    name: str
    path: Path
    manifest: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        return self.manifest is not None

    @property
    def tables(self) -> list[str]:
        """Names of the tables in it, as `table` takes them."""
        return sorted(file.stem for file in self.path.glob("*.parquet"))

    def table(self, name: str) -> pd.DataFrame:
        """One table of the section.

        Raises:
            RunError: there is no such table (the sentence lists those that there are), or it
                cannot be read.
        """
        file = self.path / f"{name}.parquet"
        if not file.exists():
            raise RunError(
                f"Section {self.name!r} must hold table {name!r}, it has "
                f"{', '.join(self.tables) or 'none'}."
            )
        return read_table(file)


class Run:
    """The reading side of a run, finished or still being written.

    Attributes:
        plan: what was to be done.
        manifest: what came out, with digests; ``None`` while the run is unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan: dict[str, Any] = read_json(path / PLAN)
        self.manifest: dict[str, Any] | None = (
            read_json(path / MANIFEST) if (path / MANIFEST).exists() else None
        )
        schema = self.plan.get("schema")
        if schema != SCHEMA:
            raise RunError(
                f"Run {path} has schema {schema}, this version of headscope reads {SCHEMA}. "
                "Install the version that made it, or score again."
            )

    @property
    def finished(self) -> bool:
        return self.manifest is not None

    @property
    def shards(self) -> tuple[int, int]:
        """How many shards are done, and how many there are."""
        return len(self._journal.finished()), int(self.plan["shards"])

    @property
    def being_written(self) -> bool:
        """Whether some process works on it right now."""
        return RunLock(self.path / JOURNAL / LOCK).is_held()

    @cached_property
    def heads(self) -> HeadTable:
        """The head table, with those of finished sections; unfinished: the shards done so far."""
        if self.finished:
            parts = [self.path / HEADS]
            parts += [
                section.path / HEADS for section in self.sections.values() if section.finished
            ]
            first, *more = [HeadTable.from_parquet(part) for part in parts if part.exists()]
            return first.merge(*more) if more else first
        plan = self.plan
        return self._so_far.heads(plan["data"]["inputs"], plan["layers"], plan["measures"])

    @cached_property
    def profiles(self) -> pd.DataFrame:
        """Profiles per head: tower, layer, head, profile, x, value."""
        if self.finished:
            return read_table(self.path / PROFILES)
        return self._so_far.profiles()

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Examples that could not be scored: id and reason."""
        if self.manifest is not None:
            return list(self.manifest["skipped"])
        return [
            item
            for shard in self._journal.finished()
            for item in self._journal.about(shard)["skipped"]
        ]

    @property
    def sections(self) -> dict[str, Section]:
        """What was added to the run, by name; unfinished sections have no manifest."""
        found = {}
        for name in sorted(_sections_in(self.path)):
            path = self.path / name
            manifest = read_json(path / MANIFEST) if (path / MANIFEST).exists() else None
            found[name] = Section(name, path, manifest)
        return found

    def altered(self) -> list[str]:
        """Files that are missing or no longer what the manifest says; empty if all is well."""
        if self.manifest is None:
            return []
        there = digests(self.path, skip=_sections_in(self.path))
        recorded = self.manifest["files"]
        return sorted(name for name in recorded if there.get(name) != recorded[name])

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished, {} of {} shards".format(*self.shards)
        return f"Run({str(self.path)!r}, {state})"

    @property
    def _journal(self) -> Journal:
        return Journal(self.path / JOURNAL)

    @cached_property
    def _so_far(self) -> Any:
        from analysis.tally import tally_of

        return tally_of(self._journal, self.plan)


def open_run(path: str | Path) -> Run:
    """The run in a folder (or of a manifest or plan file), with no model and no GPU.

    Raises:
        RunError: there is no run.
    """
    folder = Path(path).expanduser()
    if folder.name in (MANIFEST, PLAN) and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise RunError(f"Run {str(path)!r} does not exist. Check the path; runs lie in `runs/`.")
    if not (folder / PLAN).exists():
        raise RunError(
            f"Folder {str(path)!r} is not a run: it has no {PLAN}. "
            "Make one with `headscope score MODEL --out FOLDER`."
        )
    return Run(folder)


def _refuse_foreign(path: Path) -> None:
    refuse_foreign(path, {JOURNAL})
    # A training of coders or a store has a plan too, and nothing that looks like a finished shard.
    if (path / PLAN).exists() and "shards" not in read_json(path / PLAN):
        raise RunError(
            f"{path} holds something else than a run of scores. Choose another `--out`; nothing "
            "was touched."
        )


def _refuse_other_run(path: Path, plan: Mapping[str, Any], resume: bool) -> None:
    if (path / MANIFEST).exists():
        raise RunError(
            f"{path} holds a finished run. Look at it with `headscope show {path}`, or choose "
            "another `--out`."
        )
    if not Journal(path / JOURNAL).finished():
        return  # a run that never got to its first shard: there is nothing to lose
    if not resume:
        raise RunError(
            f"{path} holds an unfinished run. Add `--resume` to go on with it, or choose another "
            "`--out`."
        )
    differences = plan_differences(read_json(path / PLAN), plan)
    if differences:
        raise RunError(
            f"The run in {path} has another plan: {'; '.join(differences)}. "
            "Resume with what it was started with, or choose another `--out`."
        )


def _sections_in(path: Path) -> set[str]:
    return {item.name for item in path.iterdir() if item.is_dir() and item.name not in _OWN}
