"""Fidelity and latents of several coders, from one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae.activations.as_activations import as_activations
from sae.coders.coder import Coder
from sae.judging.duplicates import duplicates
from sae.judging.fidelity import Fidelity, FidelitySums
from sae.judging.latent_statistics import LatentStatistics, LatentSums
from sae.judging.one_pass import one_pass, sites_of


@dataclass(frozen=True)
class Judgement:
    """What a coder is worth on some rows, without the model."""

    fidelity: Fidelity
    latents: LatentStatistics

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"fidelity": self.fidelity.record(), "latents": self.latents.record()}


def judgements(
    coders: Mapping[str, Coder],
    activations: Any,
    *,
    sites: Mapping[str, str] | None = None,
    find_duplicates: bool = False,
) -> dict[str, Judgement]:
    """`sae.judging.fidelity.judge_sites` and the statistics of latents, of the same rows.

    Args:
        sites: the site of each coder, where its name is not one and it does not say it itself.
        find_duplicates: compare decoder rows as well.

    Raises:
        ValueError: as `sae.judging.one_pass.one_pass`.
    """
    source = as_activations(activations)
    of = sites_of(coders, source, sites)
    fidelity = {name: FidelitySums(source.heads[of[name]]) for name in coders}
    latents = {name: LatentSums(coder.latents) for name, coder in coders.items()}
    one_pass(coders, source, {name: [fidelity[name], latents[name]] for name in coders}, of)
    return {
        name: Judgement(
            fidelity[name].fidelity(),
            latents[name].statistics(duplicates(coder.decoder) if find_duplicates else None),
        )
        for name, coder in coders.items()
    }
