"""What a model answered under one condition, kept chunk by chunk as it comes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        tokens: how many were generated, the end token included.
        ended: whether the model came to an end by itself.
        log_probability: of the continuation that was probed, in nats; None without a probe.
    """

    id: str
    text: str
    tokens: int
    ended: bool
    log_probability: float | None = None


@dataclass(frozen=True)
class Chunk:
    """The answers to some prompts that were given together.

    Attributes:
        first_seconds: until the first token of each batch.
        later_seconds: for all later tokens.
        later_steps: how many forwards that were.
        fired, touched: of the edit, see `probes.edits.edit.EditReport`.
        skipped: prompts that could not be prepared: id and reason.
    """

    number: int
    answers: tuple[Answer, ...]
    first_seconds: float = 0.0
    later_seconds: float = 0.0
    later_steps: int = 0
    fired: int = 0
    touched: int = 0
    skipped: tuple[dict[str, str], ...] = field(default_factory=tuple)


class AnswerJournal:
    """Chunks of one condition: in memory, and in a file if a path is given.

    A chunk is one line, written and synced at once; what a crash left of a line is cut off when the
    file is opened again. A later line of the same number stands for the earlier one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.chunks: dict[int, Chunk] = {}
        if path is not None and path.exists():
            self._read(path)

    def add(self, chunk: Chunk) -> None:
        """Record a chunk.

        Raises:
            DiskFull: there is no room; what was written before is safe.
        """
        if self.path is not None:
            self._write(self.path, chunk)
        self.chunks[chunk.number] = chunk

    def leave_out(self, number: int, skipped: dict[str, str]) -> None:
        """Take a prompt out of a chunk, with the reason, if the chunk does not say so already."""
        chunk = self.chunks[number]
        if all(item["id"] != skipped["id"] for item in chunk.skipped):
            kept = tuple(answer for answer in chunk.answers if answer.id != skipped["id"])
            self.add(replace(chunk, answers=kept, skipped=(*chunk.skipped, skipped)))

    @property
    def answered(self) -> int:
        """How many prompts were answered."""
        return sum(len(chunk.answers) for chunk in self.chunks.values())

    @property
    def left_out(self) -> int:
        """How many prompts could not be answered."""
        return sum(len(chunk.skipped) for chunk in self.chunks.values())

    @property
    def answers(self) -> dict[str, Answer]:
        """All answers so far, by id of the prompt."""
        return {answer.id: answer for chunk in self._ordered() for answer in chunk.answers}

    @property
    def skipped(self) -> list[dict[str, str]]:
        return [item for chunk in self._ordered() for item in chunk.skipped]

    def _ordered(self) -> Iterator[Chunk]:
        return (self.chunks[number] for number in sorted(self.chunks))

    def _write(self, path: Path, chunk: Chunk) -> None:
        from analysis.atomic_file import DiskFull, is_disk_full

        line = json.dumps(asdict(chunk), ensure_ascii=False, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            before = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                os.truncate(path, before)
                if is_disk_full(error):
                    raise DiskFull(f"No space is left on the disk for {path}.") from error
                raise

    def _read(self, path: Path) -> None:
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            chunk = _chunk(json.loads(line))
            self.chunks[chunk.number] = chunk
            whole += len(line)
        if whole < path.stat().st_size:
            os.truncate(path, whole)


def agreed(journals: Mapping[str, AnswerJournal], number: int) -> list[dict[str, str]]:
    """What any journal leaves out of a chunk; by then all that have the chunk leave it out.

    Conditions are compared on the same prompts, and a crash may have come in between.
    """
    known = [journal.chunks[number] for journal in journals.values() if number in journal.chunks]
    found = {item["id"]: item for chunk in known for item in chunk.skipped}
    for item in found.values():
        leave_out(journals, number, item)
    return list(found.values())


def leave_out(journals: Mapping[str, AnswerJournal], number: int, skipped: dict[str, str]) -> None:
    """`AnswerJournal.leave_out` in every journal that has the chunk."""
    for journal in journals.values():
        if number in journal.chunks:
            journal.leave_out(number, skipped)


def _chunk(record: dict[str, Any]) -> Chunk:
    answers = tuple(Answer(**answer) for answer in record.pop("answers"))
    return Chunk(answers=answers, skipped=tuple(record.pop("skipped")), **record)
