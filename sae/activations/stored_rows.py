"""Read a store of head outputs: as a source of a training, or row by row with its places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.readers.registry import content_digest
from sae.activations.epoch_order import shuffled
from sae.activations.finite_rows import refuse_nonfinite
from sae.activations.places import PlacedChunk, Places
from sae.activations.provenance import differences
from sae.activations.source import Activations, Chunk
from sae.activations.store_files import (
    EXAMPLE,
    EXAMPLES,
    INDEX,
    PLAN,
    POSITION,
    ROWS,
    SCHEMA,
    SHARDS,
    StoreError,
    damaged,
    file_digest,
    read_record,
    read_shard,
)

_WHAT_IT_WAS = ("subject", "data", "roles")
"""What of a source's record says which rows it has; the rest is their order."""


class StoredActivations:
    """The rows of a finished store; a chunk is a shard.

    Attributes:
        folder: where it lies.
        ids: the examples' ids; `Places.example` is an index in them. Empty where not known.
        skipped: examples that could not be prepared when it was made: id and reason.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sites: Iterable[str] | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 0,
        of: Activations | None = None,
    ) -> None:
        """Read plan and index.

        Args:
            sites: only these of the store's.
            device: where rows are put; None: on the CPU.
            seed: of the order of shards, which also depends on the epoch; None: as stored.
            of: what the store must have been made from, such as a `SubjectActivations`.

        Raises:
            StoreError: no store, an unfinished one, one of another version, one without such a
                site, or one of another model, data or roles.
        """
        self.folder, self.seed, self._device = Path(folder).expanduser(), seed, device
        self._plan, index = _opened(self.folder)
        self._shards: list[dict[str, Any]] = index["shards"]
        self._sound: set[str] = set()
        known = list(self._plan["widths"])
        self._sites = known if sites is None else list(sites)
        missing = [site for site in self._sites if site not in known]
        if missing or not self._sites:
            raise StoreError(
                f"The store in {self.folder} holds {', '.join(known)}, not "
                f"{missing[0] if missing else 'no site at all'}. Choose among those."
            )
        self.rows: dict[str, int] = {site: index["rows"][site] for site in self._sites}
        self.skipped: list[tuple[str, str]] = list(index["skipped"].items())
        self.ids: list[str] = []
        if self._plan["places"]:
            self.ids = read_record(self.folder / EXAMPLES)["ids"]
        if of is not None:
            self._refuse_other(of)

    @property
    def widths(self) -> dict[str, int]:
        """Heads x value width by site."""
        return {site: self._plan["widths"][site] for site in self._sites}

    @property
    def heads(self) -> dict[str, int]:
        """Number of heads by site."""
        return {site: self._plan["heads"][site] for site in self._sites}

    @property
    def shards(self) -> int:
        """How many there are: the chunks of a pass."""
        return len(self._shards)

    @property
    def about(self) -> dict[str, Any]:
        """As of the source it was made from; sites are those that are read.

        And ``store``: what decides the rows and their order beyond that, so that a training is not
        taken up with the model in place of the store, another store, or another order.
        """
        shards = content_digest(*(shard["digest"].encode() for shard in self._shards))
        store = {"dtype": self._plan["dtype"], "digest": shards, "seed": self.seed}
        return {**self._plan["about"], "sites": list(self._sites), "store": store}

    def chunks(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Chunk]:
        """One pass over the shards, from chunk ``start`` on; with ``every``, each n-th of the rest.

        Raises:
            StoreError: a shard is missing or damaged.
            ValueError: rows that are not finite.
        """
        for number, shard in self._in_order(epoch)[start::every]:
            yield self._rows(self._read(shard), f"chunk {number} of epoch {epoch}")

    def placed_chunks(self, epoch: int, start: int = 0) -> Iterator[PlacedChunk]:
        """The same rows with their places.

        Raises:
            StoreError: also where the store was made without places.
        """
        if not self._plan["places"]:
            raise StoreError(
                f"The store in {self.folder} must know where its rows come from, it was made from "
                "rows alone. Store them from a model."
            )
        for number, shard in self._in_order(epoch)[start:]:
            tensors = self._read(shard)
            places = {
                site: Places(
                    tensors[f"{site}/{EXAMPLE}"].long(), tensors[f"{site}/{POSITION}"].long()
                )
                for site in self._sites
            }
            rows = self._rows(tensors, f"chunk {number} of epoch {epoch}")
            yield PlacedChunk(number, rows, places)

    def _in_order(self, epoch: int) -> list[tuple[int, dict[str, Any]]]:
        order = shuffled(len(self._shards), self.seed, epoch)
        return [(number, self._shards[index]) for number, index in enumerate(order)]

    def _rows(self, tensors: Mapping[str, Tensor], where: str) -> Chunk:
        rows = {site: tensors[f"{site}/{ROWS}"] for site in self._sites}
        for site, found in rows.items():
            refuse_nonfinite(site, found, where)
        return {site: found.to(self._device or found.device) for site, found in rows.items()}

    def _read(self, shard: Mapping[str, Any]) -> dict[str, Tensor]:
        path = self.folder / SHARDS / shard["file"]
        if not path.is_file():
            raise damaged(path, "it is missing")
        if shard["file"] not in self._sound:  # once: hashing costs about as much as reading
            if file_digest(path) != shard["digest"]:
                raise damaged(path, "its content is not what was written")
            self._sound.add(shard["file"])
        tensors, _ = read_shard(path)
        for site in self._sites:
            shape = (shard["rows"][site], self._plan["widths"][site])
            if tuple(tensors[f"{site}/{ROWS}"].shape) != shape:
                raise damaged(path, f"{site} must be {list(shape)}")
        return tensors

    def _refuse_other(self, source: Activations) -> None:
        mine, theirs = self._plan["about"], source.about
        found = differences(
            {name: mine.get(name) for name in _WHAT_IT_WAS},
            {name: theirs.get(name) for name in _WHAT_IT_WAS},
        )
        if found:
            raise StoreError(
                f"The store in {self.folder} was made from something else: "
                f"{'; '.join(found[:3])}. Use what it was made from, or another store."
            )


def _opened(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (folder / PLAN).is_file():
        raise StoreError(
            f"{folder} is not a store of head outputs: it has no {PLAN}. Make one with "
            "`store_activations`."
        )
    plan = read_record(folder / PLAN)
    if plan.get("schema") != SCHEMA or "widths" not in plan:
        raise StoreError(
            f"{folder} must be a store of schema {SCHEMA}, got {plan.get('schema')}. Use the "
            "version that made it, or store the activations again."
        )
    if not (folder / INDEX).is_file():
        raise StoreError(
            f"The store in {folder} is not finished. Go on with `store_activations(..., "
            "resume=True)`."
        )
    return plan, read_record(folder / INDEX)
