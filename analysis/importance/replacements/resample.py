"""Another example's head in the place of a head."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.replacements.replacement import Plain, positions_of
from probes.head_outputs import HeadOutputs, head_outputs
from probes.heads import Site
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.inputs import Batch, Example
    from probes.replay import RecordedForward
    from probes.subject import Subject

_PAD = ROLES.index("pad")


class Resample(Plain):
    """The same head on another example, matched position by position.

    A position takes the donor's position of the same role and the same number within that role
    (the third word the third word, a patch the same patch), counted round where the donor has
    fewer. Averaged over ``draws`` donors per example.

    Donors run draw by draw, when their values are first asked for. What their heads gave out is
    held for one draw at a time, and on the CPU: of a layer that is asked for, as much as the
    batch's own z goes to the device.
    """

    pass_name = "donors"

    def __init__(self, draws: int = 5, seed: int = 0) -> None:
        self.name, self.draws, self.seed = "resample", draws, seed
        self._examples: list[Example] = []
        self._place: dict[str, int] = {}
        self._run: Callable[[int], HeadOutputs] | None = None
        self._held: tuple[int, HeadOutputs] | None = None

    def begin(self, subject: Subject, data: Data) -> None:
        """Put the examples in an order that depends on their ids and the seed alone.

        Raises:
            ValueError: there are not more examples than draws.
        """
        found = {example.id: example for batch in data() for example in batch.examples}
        if len(found) <= self.draws:
            raise ValueError(
                f"Resample ablation with {self.draws} draws must have at least "
                f"{self.draws + 1} examples, got {len(found)}. Give more data, or fewer draws "
                "with `--draws`."
            )
        self._examples = sorted(found.values(), key=lambda e: _shuffled(e.id, self.seed))
        self._place = {example.id: place for place, example in enumerate(self._examples)}

    def start(self, subject: Subject, batch: Batch) -> None:
        """Find the donors: draw d of an example is the one d + 1 places behind it in that order."""
        if subject.processor is None or not any(e.prompt or e.pictures for e in self._examples):
            raise ValueError(
                "Resample ablation must be able to prepare other examples, and these batches were "
                "made from tensors. Score data or prepared examples instead."
            )

        def run(draw: int) -> HeadOutputs:
            places = [self._place[example.id] + draw + 1 for example in batch.examples]
            donors = [self._examples[place % len(self._examples)] for place in places]
            return head_outputs(subject, subject.prepare(examples=donors), device="cpu")

        self._run, self._held = run, None

    def _donors(self, draw: int) -> HeadOutputs:
        assert self._run is not None, "start comes first"
        if self._held is None or self._held[0] != draw:
            self._held = None  # let go of one draw before the next is run
            self._held = draw, self._run(draw)
        return self._held[1]

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        z, other = recorded.z[site], self._donors(draw)
        if site not in other.z:
            raise ValueError(_no_donor(recorded.batch.examples[0].id, site.tower))
        theirs = other.z[site]
        index = matched_positions(recorded.batch, other.batch, site, z, theirs)
        return theirs.reshape(-1, *theirs.shape[2:])[index].to(z.device)


def _shuffled(example_id: str, seed: int) -> bytes:
    text = f"{seed}\0{example_id}\0donor".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()


def matched_positions(batch: Batch, donors: Batch, site: Site, z: Tensor, theirs: Tensor) -> Tensor:
    """Long ``[batch query]``: which of the donors' flattened positions each position takes.

    Matched example by example, whatever rows they lie in (tiles, packed images, several images).

    Raises:
        ValueError: positions are not known and shapes differ, or a donor has none in this tower.
    """
    mine, other = positions_of(batch, site, z), positions_of(donors, site, theirs)
    if mine is None or other is None:
        if z.shape == theirs.shape and z.shape[0] == batch.size:
            return torch.arange(z.shape[0] * z.shape[1]).reshape(z.shape[:2])
        raise ValueError(
            f"Resample ablation must match the positions of {site.tower} with another example's, "
            f"got {list(z.shape[:2])} and {list(theirs.shape[:2])} and no token map that fits. "
            "Choose `--ablation mean`, or inputs of one size."
        )
    tokens, their_tokens = batch.tokens[site.tower], donors.tokens[site.tower]
    role, their_role = tokens.role[mine.flatten()], their_tokens.role[other.flatten()]
    owner, their_owner = tokens.example[mine.flatten()], their_tokens.example[other.flatten()]
    index = torch.empty_like(role)
    for example in owner.unique().tolist():
        for name in role[owner == example].unique().tolist():
            here = ((owner == example) & (role == name)).nonzero()[:, 0]
            there = ((their_owner == example) & (their_role == name)).nonzero()[:, 0]
            if not len(there):
                there = ((their_owner == example) & (their_role != _PAD)).nonzero()[:, 0]
            if not len(there):
                raise ValueError(_no_donor(batch.examples[example].id, site.tower))
            index[here] = there[torch.arange(len(here)) % len(there)]
    return index.reshape(mine.shape)


def _no_donor(example: str, tower: str) -> str:
    return (
        f"The donor of example {example!r} must have positions in {tower}, it has none. "
        "Give data of one kind, or choose `--ablation mean`."
    )
