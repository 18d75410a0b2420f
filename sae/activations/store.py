"""Write head outputs to a disk once, so that many coders can be trained without the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.atomic_file import drop_half_written
from analysis.journal import RunLock
from analysis.run_files import RunError, refuse_foreign
from sae.activations.places import PlacedActivations, Places
from sae.activations.provenance import differences
from sae.activations.source import Activations, Chunk
from sae.activations.store_files import (
    DTYPES,
    EXAMPLE,
    EXAMPLES,
    INDEX,
    LOCK,
    PLAN,
    POSITION,
    ROWS,
    SCHEMA,
    SHARDS,
    StoreError,
    about_shard,
    file_digest,
    read_record,
    shard_file,
    write_record,
    write_shard,
)
from sae.activations.stored_rows import StoredActivations

SHARD_ROWS = 16_384

_Group = tuple[int, list[Chunk], list[Mapping[str, Places]]]
"""Number of a chunk of the source, and the rows and places of the batches it consists of."""

Listener = Callable[[int, Mapping[str, int]], None]
"""Called after each shard with how many there are, and the rows by site so far."""


def store_activations(
    source: Activations,
    folder: str | Path,
    *,
    resume: bool = False,
    dtype: str | None = None,
    shard_rows: int = SHARD_ROWS,
    listener: Listener | None = None,
) -> StoredActivations:
    """Write one pass over a source (its epoch 0) to a folder, shard by shard.

    Shards are whole or not there, so a store that was stopped or killed goes on with ``resume``.
    Where the source knows which example and position a row is, that is kept as well. Memory: one
    shard.

    Args:
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: as the rows come (float64: float32).
        shard_rows: a shard ends with the chunk that gives some site this many rows.

    Raises:
        StoreError: the folder holds something else, a store of another model, data or roles, or an
            unfinished one without ``resume``; or a value that the dtype cannot hold.
        RunLocked: another process is writing it.
        ValueError: what the source raises.
    """
    if dtype is not None and dtype not in DTYPES:
        raise StoreError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}. Choose one.")
    if shard_rows < 1:
        raise StoreError(f"`shard_rows` must be at least 1, got {shard_rows}. Give 1 or more.")
    folder = Path(folder).expanduser()
    placed = isinstance(source, PlacedActivations)
    plan = {
        "schema": SCHEMA,
        "about": dict(source.about),
        "widths": dict(source.widths),
        "heads": dict(source.heads),
        "dtype": dtype,
        "shard_rows": shard_rows,
        "places": placed,
    }
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder / SHARDS / LOCK):
        _begin(folder, plan, resume)
        drop_half_written(folder)
        if not (folder / INDEX).exists():
            _write(source, folder, plan, listener)
    return StoredActivations(folder)


def _write(
    source: Activations, folder: Path, plan: Mapping[str, Any], listener: Listener | None
) -> None:
    placed = isinstance(source, PlacedActivations)
    if placed:
        write_record(folder / EXAMPLES, {"ids": list(source.ids)})
    totals = dict.fromkeys(source.widths, 0)
    skipped: dict[str, str] = {}
    files: list[dict[str, Any]] = []
    for path, about in _shards(source, folder, plan):
        totals = {site: count + about["rows"][site] for site, count in totals.items()}
        skipped.update(about["skipped"])
        files.append({"file": path.name, "rows": about["rows"], "digest": file_digest(path)})
        if listener is not None:
            listener(len(files), totals)
    if placed:
        skipped.update(source.skipped)
    if not any(totals.values()):
        raise StoreError("A store must hold at least one row, the source gave none. Give data.")
    index = {"schema": SCHEMA, "rows": totals, "skipped": skipped, "shards": files}
    write_record(folder / INDEX, index)


def _refuse_other(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise where a store was made from something else.

    Raises:
        StoreError: with what differs.
    """
    found = differences(old, new)
    if found:
        raise StoreError(
            f"The store in {folder} was made from something else: {'; '.join(found[:3])}. Use what "
            "it was made from, or another folder."
        )


def _begin(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    if (folder / PLAN).exists():
        known = read_record(folder / PLAN)
        _refuse_other(folder, known, plan)
        if not resume:
            state = "a finished" if (folder / INDEX).exists() else "an unfinished"
            raise StoreError(
                f"{folder} holds {state} store. Add `resume` to go on with it, or choose another "
                "folder."
            )
        return
    write_record(folder / PLAN, plan)


def _refuse_foreign(folder: Path) -> None:
    try:
        refuse_foreign(folder, {SHARDS}, "A store")
    except RunError as error:
        raise StoreError(str(error)) from error


def _shards(
    source: Activations, folder: Path, plan: Mapping[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every shard in order, made where it is not there yet."""
    number, chunk = 0, 0
    groups: Iterator[_Group] | None = None
    while True:
        path = shard_file(folder, number)
        about = about_shard(path) if path.exists() else None
        if about is not None and about["first"] == chunk:
            groups = None  # it stands elsewhere; the next shard that is missing begins anew
        else:
            groups = _groups(source, chunk) if groups is None else groups
            about = _make(source, groups, path, chunk, plan)
            if about is None:
                return
        yield path, about
        number, chunk = number + 1, about["end"]


def _groups(source: Activations, start: int) -> Iterator[_Group]:
    """Number, rows and places of each chunk."""
    if not isinstance(source, PlacedActivations):
        for number, rows in enumerate(source.chunks(0, start), start):
            yield number, [rows], []
        return
    for number, parts in groupby(source.placed_chunks(0, start), key=lambda part: part.number):
        together = list(parts)
        yield number, [part.rows for part in together], [part.places for part in together]


def _make(
    source: Activations, groups: Iterator[_Group], path: Path, chunk: int, plan: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Fill one shard with whole chunks and write it; None where there are no more chunks."""
    tensors: dict[str, list[Tensor]] = {}
    counts, end = dict.fromkeys(source.widths, 0), chunk
    dtype = DTYPES[plan["dtype"]] if plan["dtype"] else None
    for number, rows, places in groups:
        end = number + 1
        for site in source.widths:
            for part in rows:
                tensors.setdefault(f"{site}/{ROWS}", []).append(_kept(site, part[site], dtype))
                counts[site] += part[site].shape[0]
            for place in places:
                for name in (EXAMPLE, POSITION):
                    column = getattr(place[site], name).to("cpu", torch.int32)
                    tensors.setdefault(f"{site}/{name}", []).append(column)
        if max(counts.values()) >= plan["shard_rows"]:
            break
    if end == chunk:
        return None
    skipped = dict(source.skipped) if isinstance(source, PlacedActivations) else {}
    about = {"first": chunk, "end": end, "rows": counts, "skipped": skipped}
    write_shard(path, {name: torch.cat(parts) for name, parts in tensors.items()}, about)
    return about


def _kept(site: str, rows: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype or (rows.dtype if rows.dtype in DTYPES.values() else torch.float32)
    kept = rows.to("cpu", wanted)
    # bfloat16 reaches as far as float32; the sources refuse what was not finite before.
    if wanted == torch.float16 and not kept.isfinite().all():
        raise StoreError(
            f"Head outputs of {site} must be at most 65,504 to be kept in float16, got "
            f"{float(rows.abs().amax()):.3g}. Store them in bfloat16 or float32."
        )
    return kept
