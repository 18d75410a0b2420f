"""One pass over the data for all latents: how often, how strongly, by which heads, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae.activations.places import PlacedActivations
from sae.coders.coder import Coder
from sae.reading.feature_examples import ExampleKeeper, FeatureExamples, rows_at_once
from sae.reading.head_shares import FiringShares, ShareSums, refuse_site


@dataclass(frozen=True)
class FeatureSurvey:
    """What `sae.feature_examples` and `sae.firing_shares` tell, of the same rows."""

    examples: FeatureExamples
    shares: FiringShares


@torch.no_grad()
def survey_features(
    activations: PlacedActivations,
    coder: Coder,
    site: str,
    *,
    top: int,
    sample: int,
    seed: int = 0,
    reached: Callable[[int], None] = lambda examples: None,
) -> FeatureSurvey:
    """Run and encode the data once, and keep what both have of every latent.

    Memory: twice ``top + sample`` firings of 36 bytes per latent, and two numbers per latent and
    head, however large the data set is.

    Args:
        reached: told how many examples were read.

    Raises:
        ValueError: the stream does not have the site, or its width is not the coder's.
    """
    refuse_site(activations, coder, site)
    keeper = ExampleKeeper(range(coder.latents), top, sample, seed)
    sums = ShareSums(coder, activations.heads[site])
    step, seen = rows_at_once(coder), set[int]()
    for chunk in activations.placed_chunks(0):
        if site not in chunk.rows:
            continue
        places, whole = chunk.places[site], chunk.rows[site]
        for first in range(0, len(whole), step):
            x = whole[first : first + step].to(coder.encoder.device, coder.encoder.dtype)
            strengths, here = coder.encode(x), slice(first, first + len(x))
            sums.add(x, strengths)
            example, position = places.example[here].cpu(), places.position[here].cpu()
            keeper.add(strengths.float().cpu(), example, position, activations.ids)
        seen.update(places.example.unique().tolist())
        reached(len(seen))
    return FeatureSurvey(keeper.examples(site, activations.ids), sums.shares())
