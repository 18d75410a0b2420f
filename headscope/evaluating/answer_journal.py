"""What a model answered under one condition, kept chunk by chunk as it comes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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
    file is opened again.

    Attributes:
        answered, left_out: how many prompts were answered, and could not be.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.chunks: dict[int, Chunk] = {}
        self.answered = self.left_out = 0
        if path is not None and path.exists():
            self._read(path)

    def add(self, chunk: Chunk) -> None:
        """Record a chunk.

        Raises:
            DiskFull: there is no room; what was written before is safe.
        """
        if self.path is not None:
            self._write(self.path, chunk)
        self._keep(chunk)

    @property
    def answers(self) -> dict[str, Answer]:
        """All answers so far, by id of the prompt."""
        return {answer.id: answer for chunk in self._ordered() for answer in chunk.answers}

    @property
    def skipped(self) -> list[dict[str, str]]:
        return [item for chunk in self._ordered() for item in chunk.skipped]

    def _keep(self, chunk: Chunk) -> None:
        self.chunks[chunk.number] = chunk
        self.answered += len(chunk.answers)
        self.left_out += len(chunk.skipped)

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
            self._keep(_chunk(json.loads(line)))
            whole += len(line)
        if whole < path.stat().st_size:
            os.truncate(path, whole)


def _chunk(record: dict[str, Any]) -> Chunk:
    answers = tuple(Answer(**answer) for answer in record.pop("answers"))
    return Chunk(answers=answers, skipped=tuple(record.pop("skipped")), **record)
