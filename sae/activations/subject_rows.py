"""Head outputs of a model, streamed: one forward of each batch gives the rows of all sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from probes.heads import Head, Site, select_sites
from probes.inputs import Batch, Example, InputError
from probes.prepared_batches import length_of, prepared_batches
from sae.activations.epoch_order import groups_alike, shuffled
from sae.activations.finite_rows import refuse_nonfinite
from sae.activations.places import PlacedChunk, Places, ordinals
from sae.activations.provenance import about_subject, digest_of_batches, digest_of_examples
from sae.activations.reach import Reach, kinds_of
from sae.activations.site_forward import heard_rows, joined_rows
from sae.activations.source import Chunk
from sae.activations.text_windows import text_windows
from sae.activations.token_rows import check_roles

if TYPE_CHECKING:
    from probes.subject import Subject

BATCH_SIZE = 16


class SubjectActivations:
    """The z of some sites of a model on some data, in the model's dtype and on its device.

    A chunk is what one batch of examples gives; a site that they do not reach has 0 rows in it.
    Examples that cannot be prepared (too long, an image that does not decode) are left out and
    counted.

    Attributes:
        sites: attention layers, in the model's order.
        ids: the examples' ids; `Places.example` is an index in them.
    """

    def __init__(
        self,
        subject: Subject,
        data: str | Path | Iterable[Example] | Iterable[Batch],
        *,
        sites: str | Site | Head | Iterable[str | Site | Head],
        roles: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
        seed: int | None = 0,
        limit: int | None = None,
        context: int | None = None,
        about_data: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the data and look at the model; nothing is run on the data yet.

        Args:
            data: a bundled set, file, folder or ``hf:NAME:SPLIT``; or examples; or batches.
            sites: such as ``"language.L2"`` or ``["language.*", "vision.L1"]``.
            roles: which positions give rows, such as ``("image",)``; all but padding by default.
            batch_size: examples in a forward; batches that are given stay as they are.
            seed: of the order, which also depends on the epoch; None: the order of the data.
            limit: only so many examples.
            context: cut longer texts into examples of at most so many tokens; None: texts stay
                whole, and those that the model cannot read are left out.
            about_data: more to be said of the data in `about`, such as their ``name``.

        Raises:
            ValueError: a site or a role that does not exist; no example.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}. Give 1 or more.")
        self.subject, self.seed, self.batch_size = subject, seed, batch_size
        self.roles = check_roles(roles)
        self._name, items = _read(data, subject, limit)
        self._more = dict(about_data or {})
        if context is not None:
            if any(isinstance(item, Batch) for item in items):
                raise ValueError("`context` must be left out for batches. Cut them beforehand.")
            items = list(text_windows(items, subject.tokenizer, context))
        self._batches = [item for item in items if isinstance(item, Batch)]
        self._examples = [item for item in items if isinstance(item, Example)]
        if len(self._batches) + len(self._examples) != len(items) or (
            self._batches and self._examples
        ):
            raise ValueError("`data` must hold examples or batches, and not both. Give one kind.")
        if not items:
            raise ValueError("`data` must hold at least one example, got none. Give some data.")
        self.sites = select_sites(sites, subject.towers)
        if not self.sites:
            raise ValueError("`sites` must name at least one attention layer, got none. Name one.")
        self._skipped: dict[int, tuple[str, str]] = {}
        every = [e for batch in self._batches for e in batch.examples] or self._examples
        self.ids: list[str] = [example.id for example in every]
        self._kinds = kinds_of(items)

    @property
    def widths(self) -> dict[str, int]:
        """Heads x value width by site."""
        places = [self.subject.layout.site(site) for site in self.sites]
        return {str(place.site): place.heads * place.value_width for place in places}

    @property
    def heads(self) -> dict[str, int]:
        """Number of heads by site."""
        return {str(site): self.subject.layout.site(site).heads for site in self.sites}

    @property
    def about(self) -> dict[str, Any]:
        """Model, data, sites, roles and order, with digests."""
        return self._about

    @cached_property
    def _about(self) -> dict[str, Any]:
        if self._batches:
            digest = digest_of_batches(self._batches)
        else:
            digest = digest_of_examples(self._examples)
        return {
            "subject": about_subject(self.subject),
            "data": {
                "name": self._name,
                "digest": digest,
                "examples": len(self.ids),
                **self._more,
            },
            "sites": list(self.widths),
            "roles": None if self.roles is None else list(self.roles),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Examples that could not be prepared so far: id and reason, in the order of the data."""
        return [self._skipped[index] for index in sorted(self._skipped)]

    def chunks(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Chunk]:
        """One pass over the data, from chunk ``start`` on; with ``every``, each n-th of the rest.

        Raises:
            ValueError: rows that are not finite; a site that no example reaches; no example that
                can be prepared.
        """
        for _, parts in self._parts(epoch, start, every):
            yield {
                name: joined_rows(self.subject, [part.rows[name] for part in parts], width)
                for name, width in self.widths.items()
            }

    def placed_chunks(self, epoch: int, start: int = 0) -> Iterator[PlacedChunk]:
        """The same rows batch by batch, with their places, the batch, and its flat positions."""
        for _, parts in self._parts(epoch, start, 1):
            yield from parts

    def _parts(self, epoch: int, start: int, every: int) -> Iterator[tuple[int, list[PlacedChunk]]]:
        reach = Reach(self.sites, self._kinds)
        for number, group in islice(enumerate(self._groups(epoch)), start, None, every):
            parts = []
            for batch, indices in self._prepared(group):
                part, heard = self._run(batch, indices, epoch, number)
                parts.append(part)
                reach.meet([batch] if self._batches else batch.examples, heard, part)
            reach.refuse_unheard()
            yield number, parts
        if start == 0 and every == 1:
            reach.refuse_nothing(self.ids, self.skipped, self.roles)

    def _groups(self, epoch: int) -> list[list[int]]:
        if self._batches:
            return [[index] for index in shuffled(len(self._batches), self.seed, epoch)]
        lengths = [length_of(example) for example in self._examples]
        return groups_alike(lengths, self.batch_size, self.seed, epoch)

    def _prepared(self, group: list[int]) -> Iterator[tuple[Batch, list[int]]]:
        """Batches of a group, with the index in `ids` of each of their examples."""
        if self._batches:
            before = sum(batch.size for batch in self._batches[: group[0]])
            batch = self._batches[group[0]]
            yield batch, list(range(before, before + batch.size))
            return
        members = [(self._examples[index], index) for index in group]
        # By identity: ids need not be distinct.
        index_of = {id(example): index for example, index in members}

        def skip(example: Example, reason: str) -> None:
            self._skipped[index_of[id(example)]] = (example.id, reason)

        good = [example for example, index in members if index not in self._skipped]
        if good:
            for batch in prepared_batches(self.subject, good, skip):
                yield batch, [index_of[id(example)] for example in batch.examples]

    def _run(
        self, batch: Batch, indices: list[int], epoch: int, number: int
    ) -> tuple[PlacedChunk, set[Site]]:
        taken = heard_rows(self.subject, batch, self.sites, self.roles)
        rows, places, flat = {}, {}, {}
        examples = torch.tensor(indices)
        numbered = {name: ordinals(tokens) for name, tokens in batch.tokens.towers.items()}
        for site in self.sites:
            name = str(site)
            rows[name] = joined_rows(self.subject, [taken.rows(site)], self.widths[name])
            flat[name] = index = taken.flat(site)
            if len(index):
                example = examples[batch.tokens[site.tower].example[index]]
                places[name] = Places(example, numbered[site.tower][index])
            else:
                places[name] = Places(index, index)
            some = ", ".join(example.id for example in batch.examples[:2])
            refuse_nonfinite(name, rows[name], f"batch {number} of epoch {epoch} ({some}, ...)")
        return PlacedChunk(number, rows, places, batch, flat), taken.heard


def _read(data: Any, subject: Subject, limit: int | None) -> tuple[str, list[Any]]:
    if isinstance(data, (str, Path)):
        from probes.readers.registry import read_examples

        return str(data), list(read_examples(data, subject.kind, limit))
    if isinstance(data, (Example, Batch)):
        raise InputError("`data` must be several examples or batches, got one. Put it in a list.")
    return "", list(data if limit is None else islice(data, limit))
