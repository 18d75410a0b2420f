"""Kinds of coders by name, and the coder that a training's settings describe."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Coder
from sae.coders.defaults import Defaults
from sae.coders.gated import Gated
from sae.coders.jump_relu import JumpReLU
from sae.coders.matryoshka import Matryoshka
from sae.coders.standard import Standard
from sae.coders.topk import TopK

if TYPE_CHECKING:
    from sae.training.config import DeadFeatures, TrainConfig

GROUP = "headscope.coders"
CODERS: dict[str, type[Coder]] = {
    kind.architecture: kind for kind in (Standard, Gated, TopK, BatchTopK, JumpReLU, Matryoshka)
}
"""Our kinds by name; installed packages add theirs by entry points of the group `GROUP`."""


def available_coders() -> dict[str, type[Coder]]:
    """All kinds by name: ours, and those that installed packages add (``headscope.coders``)."""
    others = {point.name: point.load() for point in entry_points(group=GROUP)}
    return {**others, **CODERS}


def coder_of(name: str) -> type[Coder]:
    """The kind of this name.

    Raises:
        ValueError: there is none; the sentence names those that there are.
    """
    if name in CODERS:
        return CODERS[name]
    points = entry_points(group=GROUP)
    for point in points:
        if point.name == name:
            return point.load()
    known = ", ".join(sorted({*CODERS, *(point.name for point in points)}))
    raise ValueError(f"`coder` must be one of {known}, got {name!r}.")


def make_coder(config: TrainConfig, width: int, seed: int | None = None) -> Coder:
    """A coder as it starts.

    Args:
        width: heads x head width of the site.
        seed: of the initial weights. None: that of the settings.

    Raises:
        ValueError: an unknown kind, k above the width, an option that the kind does not know, a
            weight of sparsity that only the user can give, or AuxK for a kind without it.
    """
    kind = check_settings(config, width)
    options: dict[str, Any] = kind.options_of(config, width) | config.options
    if "sparsity" in options and options["sparsity"] is None:
        options["sparsity"] = defaults(config, width).sparsity
    chosen = config.seed if seed is None else seed
    try:
        return kind(width, config.latents_of(width), seed=chosen, **options)
    except TypeError as error:
        raise ValueError(
            f"`options` must be settings of {config.coder}, got {sorted(config.options)}: {error}."
        ) from error


def check_settings(config: TrainConfig, width: int) -> type[Coder]:
    """The kind that settings ask for, if they fit a site of this width; nothing is made yet.

    Raises:
        ValueError: an unknown kind, k above the width or the number of latents, or AuxK for a kind
            without it.
    """
    kind = coder_of(config.coder)
    if kind.needs_k and not 1 <= config.k <= width:
        raise ValueError(
            f"`k` must be between 1 and the width of the site, {width}, got {config.k}. So many "
            "directions span all rows already; choose fewer active latents."
        )
    if kind.needs_k and config.k > config.latents_of(width):
        raise ValueError(
            f"`k` must be at most the number of latents, {config.latents_of(width)}, got "
            f"{config.k}. Ask for more latents, or for fewer active ones."
        )
    dead_features(config)
    return kind


def defaults(config: TrainConfig, width: int) -> Defaults:
    """Learning rate, betas and weight of sparsity: the user's, else those of the kind's source.

    Raises:
        ValueError: an unknown kind; or the weight must be given, because rows are not normalised
            and the source has none for such rows.
    """
    kind = coder_of(config.coder)
    found = kind.defaults(width, config.latents_of(width))
    if config.learning_rate is not None:
        found = replace(found, learning_rate=config.learning_rate)
    if config.sparsity is not None:
        return replace(found, sparsity=config.sparsity)
    if found.sparsity is None or config.normalise == "mean_norm":
        return found
    if found.raw_sparsity is None:
        raise ValueError(
            f"`sparsity` must be given for {config.coder} when rows are not normalised, since it "
            "is in units of the rows. Give a number, or normalise='mean_norm'."
        )
    return replace(found, sparsity=found.raw_sparsity)


def dead_features(config: TrainConfig) -> DeadFeatures:
    """What is done for dead latents: the user's word, else AuxK where the kind knows it.

    Raises:
        ValueError: AuxK is asked of a kind whose loss does not have it.
    """
    knows = coder_of(config.coder).knows_auxk
    if config.dead_features is None:
        return "auxk" if knows else "resample"
    if config.dead_features == "auxk" and not knows:
        raise ValueError(
            f"`dead_features` must be resample or none for {config.coder}, got 'auxk'. Only kinds "
            "that choose the k strongest have that loss."
        )
    return config.dead_features
