"""Words that are copied from where they stood before, and the feature that speaks most for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.reading.latent_reading import strengths_at
from sae.reading.logit_effects import logit_effects

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from sae.activations import SubjectActivations

_FEWEST = 5
"""Firings below which a feature is not chosen."""


@dataclass(frozen=True)
class Copy:
    """A position whose next word is copied, with flat positions of the language tower."""

    row: int
    example: str
    at: int
    source: int
    word: int


def coded_batches(
    activations: SubjectActivations, coder: Coder, site: str
) -> Iterator[tuple[Batch, list[int], Tensor]]:
    """Each batch with the flat positions of its rows and their strengths."""
    for chunk in activations.placed_chunks(0):
        assert chunk.batch is not None
        yield chunk.batch, chunk.flat[site].tolist(), strengths_at(coder, chunk.rows[site]).cpu()


def copies_in(batch: Batch, site: str) -> list[Copy]:
    """Positions whose word stood before and whose next word is the one that followed it then."""
    tokens = batch.tokens[site.partition(".")[0]]
    ids, special = tokens.ids.tolist(), tokens.has_role("pad", "special", "bos").tolist()
    found = []
    for row in range(tokens.rows):
        last: dict[int, int] = {}
        begin, end = int(tokens.starts[row]), int(tokens.starts[row + 1])
        name = batch.examples[int(tokens.example[begin])].id
        for at in range(begin, end - 1):
            if special[at]:
                continue
            before = last.get(ids[at])
            if before is not None and ids[before + 1] == ids[at + 1] and not special[at + 1]:
                found.append(Copy(row, name, at, before + 1, ids[at + 1]))
            last[ids[at]] = at
    return found


def strongest_copier(
    subject: Subject, activations: SubjectActivations, coder: Coder, site: str, among: set[str]
) -> int:
    """The feature that speaks most for one copied word where it is copied, and fires for it alone.

    What it adds to that word's logit above the mean logit, along the residual stream alone, summed
    over firings, times the squared share of all its strength that is there.
    """
    effects = logit_effects(subject, coder, site, list(range(coder.latents))).effects
    effects = effects - effects.mean(1, keepdim=True)
    by_word: dict[int, Tensor] = defaultdict(lambda: torch.zeros(coder.latents))
    count: dict[int, Tensor] = defaultdict(lambda: torch.zeros(coder.latents))
    total = torch.zeros(coder.latents)
    for batch, flat, strengths in coded_batches(activations, coder, site):
        copies = {copy.at: copy for copy in copies_in(batch, site) if copy.example in among}
        tokens = batch.tokens[site.partition(".")[0]]
        for row, position in enumerate(flat):
            if batch.examples[int(tokens.example[position])].id not in among:
                continue
            total += strengths[row]
            if position in copies:
                by_word[copies[position].word] += strengths[row]
                count[copies[position].word] += strengths[row] != 0
    if not by_word:
        raise ValueError(
            "Some word must be copied: stand before and be followed by the same one again. Give "
            "texts that repeat themselves."
        )
    words = list(by_word)
    strength = torch.stack([by_word[word] for word in words])
    score = strength * effects[:, words].T * (strength / total.clamp_min(1e-12)).square()
    often = torch.stack([count[word] for word in words]) >= _FEWEST
    best = score.masked_fill(~often, -torch.inf).amax(0)
    if not best.isfinite().any():
        raise ValueError(
            f"Some feature must fire at one copied word {_FEWEST} times or more, none does. Give "
            "more texts."
        )
    return int(best.argmax())
