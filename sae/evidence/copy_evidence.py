"""Whether a feature carries the copy of a word that came before: by attribution, by ablation.

At a position whose word stood before, the *copied word* is the one that followed it the last time:
what induction says comes next. If a feature fires there because heads look at that word, its
direct attribution lies on it, and taking the feature out must cost the word probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.statistics import half_of
from probes.edits.apply import edit
from sae.coders.coder import Coder
from sae.evidence.copied_words import Copy, coded_batches, copies_in, strongest_copier
from sae.evidence.means import Mean, Means
from sae.reading.direct_attribution import attributed
from sae.reading.interventions import ablate_feature
from sae.reading.latent_reading import site_of, strengths_at
from sae.splice import ReplacedRows, roles_of

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from sae.activations import SubjectActivations


@dataclass(frozen=True)
class CopyEvidence:
    """What a feature does where a word stood before.

    Attributes:
        word: the copied word at most of its firings, ``of_word`` of them.
        firings: of the feature at text positions of all examples that were judged.
        copying: at how many of them the word is copied: it stood before, and comes next now.
        attributed: share of the positive direct attribution that is on the copied word's earlier
            place, 0 to 1, where there is any.
        chance: the same if the sources were shuffled.
        ablated: change of the copied word's log-probability in nats when the feature is taken out
            there; negative: it carries the copy.
        control: the same when z is moved as far along the decoder rows of other features, drawn at
            random, mean.
        difference: ``ablated - control``, paired: negative if it is this feature that matters.
        elsewhere: change, when the feature is taken out, of copied words at positions where it
            does not fire.
    """

    site: str
    latent: int
    word: str
    of_word: int
    firings: int
    copying: int
    attributed: Mean
    chance: Mean
    ablated: Mean
    control: Mean
    difference: Mean
    elsewhere: Mean


def copy_evidence(
    subject: Subject,
    coder: Coder,
    activations: SubjectActivations,
    latent: int | None = None,
    *,
    controls: int = 8,
    seed: int = 0,
) -> CopyEvidence:
    """Measure one feature on texts that repeat themselves.

    Args:
        activations: of the coder's site; texts, with their answers.
        latent: None: the feature that speaks most for one copied word, chosen on one half of the
            examples; everything is then measured on the other half.
        controls: how many other features are drawn.

    Raises:
        ValueError: no position with a copied word, or no feature that fires at enough of them.
    """
    (site,) = activations.widths
    chosen_on: set[str] = set()
    if latent is None:
        chosen_on = {name for name in activations.ids if half_of(name, seed) == 0}
        latent = strongest_copier(subject, activations, coder, site, chosen_on)
    means, words, firings = Means(seed), Counter(), 0
    for batch, flat, strengths in coded_batches(activations, coder, site):
        mine = [copy for copy in copies_in(batch, site) if copy.example not in chosen_on]
        rows = {position: row for row, position in enumerate(flat)}
        fires = {position: bool(strengths[row, latent] != 0) for position, row in rows.items()}
        tokens = batch.tokens[site.partition(".")[0]]
        names = [e.id for e in batch.examples]
        firings += sum(
            on and names[int(tokens.example[position])] not in chosen_on
            for position, on in fires.items()
        )
        here = [copy for copy in mine if fires.get(copy.at)]
        words.update(tokens.text[copy.source] for copy in here)
        for copy, share, chance in _shares(subject, batch, coder, site, latent, here):
            means.add(copy.example, {"attributed": share, "chance": chance})
        plain = _log_probabilities(subject, batch, mine)
        told = _changes(subject, batch, ablate_feature(coder, latent, site), mine, plain)
        control = [
            _changes(subject, batch, _pushed(coder, site, latent, other), here, plain)
            for other in _drawn(coder, latent, controls, seed)
        ]
        for copy in mine:
            if not fires.get(copy.at):
                means.add(copy.example, {"elsewhere": told[copy]})
            else:
                other = sum(one[copy] for one in control) / len(control)
                found = {"ablated": told[copy], "control": other}
                means.add(copy.example, {**found, "difference": told[copy] - other})
    if not words:
        raise ValueError(
            f"Latent {latent} must fire where a word is copied, it does not. Choose another, or "
            "give texts that repeat themselves."
        )
    names = ("attributed", "chance", "ablated", "control", "difference", "elsewhere")
    (word, of_word), copying = words.most_common(1)[0], sum(words.values())
    return CopyEvidence(
        site, latent, word, of_word, firings, copying, **{name: means.of(name) for name in names}
    )


def _shares(
    subject: Subject, batch: Batch, coder: Coder, site: str, latent: int, copies: Sequence[Copy]
) -> Iterator[tuple[Copy, float, float]]:
    """Of each, the share of positive attribution on the copied word's place, and one by chance."""
    if not copies:
        return
    place = site_of(subject, coder, site)
    padding = batch.tokens[place.site.tower].has_role("pad")
    found = attributed(subject, batch, coder, place, {copy.at: [latent] for copy in copies})
    for copy in copies:
        (direct,) = found[copy.at]
        index = direct.sources.index
        # Padding and what comes later in a causal model have no weight; they are no sources.
        there = (index >= 0) & (index <= copy.at) & ~padding[index]
        brought, index = direct.by_source.clamp_min(0)[there], index[there]
        total = float(brought.sum())
        if total:  # the constant alone can make it fire: then no source has a share
            yield copy, float(brought[index == copy.source].sum()) / total, 1 / len(brought)


def _log_probabilities(subject: Subject, batch: Batch, copies: Iterable[Copy]) -> dict[Copy, float]:
    """Of each copied word where it comes next."""
    logits = subject.forward(batch).logits
    tokens = batch.tokens["language"]
    found = {}
    for copy in copies:
        row = logits[copy.row, copy.at - int(tokens.starts[copy.row])].double()
        found[copy] = float(row.log_softmax(-1)[copy.word])
    return found


def _changes(
    subject: Subject,
    batch: Batch,
    change: Any,
    copies: Sequence[Copy],
    plain: Mapping[Copy, float],
) -> dict[Copy, float]:
    """Change of each copied word's log-probability under an edit."""
    if not copies:
        return {}
    with edit(subject, change):
        now = _log_probabilities(subject, batch, copies)
    return {copy: now[copy] - plain[copy] for copy in copies}


def _drawn(coder: Coder, latent: int, count: int, seed: int) -> list[int]:
    """Other features, any."""
    order = torch.randperm(coder.latents, generator=torch.Generator().manual_seed(seed))
    return [other for other in order.tolist() if other != latent][:count]


def _pushed(coder: Coder, site: str, latent: int, other: int) -> ReplacedRows:
    """As far as taking out a feature moves z, but along another feature's decoder row."""
    size = coder.decoder[latent].norm()
    direction = coder.decoder[other] / coder.decoder[other].norm().clamp_min(1e-12)

    def new(rows: Tensor) -> Tensor:
        return rows - (strengths_at(coder, rows)[:, latent] * size).outer(direction).to(rows)

    # Where the ablation acts, and nowhere else: its strengths are of the same positions.
    return ReplacedRows(site, f"push({other} as {latent})", coder.width, new, roles_of(coder))
