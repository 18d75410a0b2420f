"""What a feature says by itself: its decoder row through W_O and the unembedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.heads import Site
from probes.subject import Subject
from probes.tokens.text import token_texts
from probes.weights.head_weight_search import head_weights
from probes.weights.head_weights import HeadWeights
from probes.weights.norm_gain import NormGain, norm_gain
from sae.coders.coder import Coder
from sae.reading.latent_reading import chosen_latents, site_of

if TYPE_CHECKING:
    from probes.inputs import Batch

BEST = 20


@dataclass(frozen=True)
class LogitEffects:
    """Change of every logit per unit of a feature's strength, along the residual stream alone.

    The scale of the final norm, one number per position, is left out: compare effects of one
    feature with each other, not with a model's logits.

    Attributes:
        effects: float32, per word of the vocabulary or class.
        names: of the words or classes, empty where they are not known.
        words: whether they are words (else classes).
        slot, slots: which of the vectors that the head reads side by side, and of how many.
    """

    site: Site
    latents: tuple[int, ...]
    effects: Float[Tensor, "latent word"] = field(repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)
    words: bool = True
    slot: int = 0
    slots: int = 1

    def top(self, latent: int, count: int = BEST) -> list[tuple[int, str, float]]:
        """The words that a feature speaks for most: id, name, effect; largest first."""
        return self._ordered(latent, count, True)

    def bottom(self, latent: int, count: int = BEST) -> list[tuple[int, str, float]]:
        """The words that it speaks against most, most negative first."""
        return self._ordered(latent, count, False)

    def _ordered(self, latent: int, count: int, largest: bool) -> list[tuple[int, str, float]]:
        row = self.effects[self.latents.index(latent)]
        order = row.sort(descending=largest, stable=True).indices[:count].tolist()
        return [(i, self.names[i] if self.names else "", float(row[i])) for i in order]


def logit_effects(
    subject: Subject,
    coder: Coder,
    site: Site | str,
    latents: int | Sequence[int],
    *,
    slot: int = 0,
    weights: HeadWeights | None = None,
    batch: Batch | None = None,
) -> LogitEffects:
    """``decoder[f] . W_O . W_U`` for features: gains of norms and LayerScale multiplied in.

    Args:
        slot: where a class head reads several vectors side by side, which one the feature is
            written to: DINOv2's reads the CLS token (0) and the mean of the patches (1).
        weights: of the site, if they were found before.
        batch: what to run to find them; by default a sample made for the model's kind.

    Raises:
        ValueError: no verified map leads from the site's residual stream to logits; the sentence
            says which part is missing.

    Source: Kissane et al. 2024 (arXiv 2406.17759), section 2.
    """
    place = site_of(subject, coder, site)
    chosen = chosen_latents(coder, latents)
    head, gain = _logit_map(subject, place.site)
    if weights is None:
        weights = head_weights(subject, batch)[place.site]
    output = weights.stream_output()
    if output is None:
        why = weights.missing.get("output") or weights.missing.get("stream") or ""
        raise ValueError(f"What {place.site} adds to the stream is not known. {why}".strip())
    rows = coder.decoder[chosen].detach().float().unflatten(1, (place.heads, -1))
    stream = torch.einsum("lhw,hwm->lm", rows.to(output.device), output)
    read = gain.fold_output(stream)
    with torch.no_grad():
        reference = next(p for p in head.parameters() if p.is_floating_point())
        given = read.to(reference.device, reference.dtype)
        slots = _slots(head, given.shape[1], slot)
        placed = given.new_zeros(len(given), slots, given.shape[1])
        placed[:, slot] = given
        effects = _without_bias(head, placed.flatten(1)).float().cpu()
    names, words = _names(subject, effects.shape[1])
    return LogitEffects(place.site, tuple(chosen), effects, names, words, slot, slots)


def _without_bias(head: nn.Module, read: Float[Tensor, "latent read"]) -> Tensor:
    """What a head makes of vectors beyond what it says of none."""
    if isinstance(head, nn.Linear):
        # Taking the bias away afterwards would leave few digits in half precision.
        return nn.functional.linear(read, head.weight)
    return head.forward(read) - head.forward(torch.zeros_like(read[:1]))


def _slots(head: nn.Module, width: int, slot: int) -> int:
    """How many vectors of the stream a head reads side by side."""
    read = getattr(head, "in_features", width)
    slots = read // width
    if read % width or not 0 <= slot < slots:
        raise ValueError(
            f"`slot` must be between 0 and {slots - 1}, and the head must read a multiple of the "
            f"stream's width {width}; got {slot} and a head that reads {read}."
        )
    return slots


def _logit_map(subject: Subject, site: Site) -> tuple[nn.Module, NormGain]:
    """Unembedding or class head, and the gains of the final norm before it.

    Raises:
        ValueError: there is none for this tower, or it was not verified.
    """
    anatomy = subject.layout.anatomy
    with_logits = [name for name in ("language", "decoder") if name in anatomy.final_norm]
    tower = with_logits[0] if with_logits else next(iter(anatomy.final_norm), "")
    if not anatomy.unembedding or site.tower != tower:
        why = anatomy.missing.get("unembedding", "")
        seen = f"tower {tower!r}" if anatomy.unembedding else "no stream that was verified"
        raise ValueError(
            f"Logits must be read from the residual stream of tower {site.tower!r}, in "
            f"{subject.name!r} they are read from {seen}. "
            f"{why or 'Choose a site of the tower that the logits come from.'}"
        )
    path = anatomy.final_norm[tower]
    norm = subject.model.get_submodule(path)
    head = subject.model.get_submodule(anatomy.unembedding)
    width = anatomy.output_matrix(site)
    if width is None:
        raise ValueError(
            anatomy.missing.get(f"{site} output projection", f"What {site} writes is not known.")
        )
    gain = norm_gain(norm, path, width.shape[2])
    if gain is None:
        raise ValueError(f"The final norm {path} must be a LayerNorm or RMSNorm, it is another.")
    return head, gain


def _names(subject: Subject, count: int) -> tuple[tuple[str, ...], bool]:
    """Names of words or classes, and whether they are words."""
    tokenizer = subject.tokenizer
    if subject.kind != "vision":
        texts = token_texts(tokenizer, torch.arange(count)) if tokenizer is not None else ()
        return tuple(texts) if len(texts) == count else (), True
    labels: Any = getattr(subject.config, "id2label", None) or {}
    named = tuple(str(labels.get(i, labels.get(str(i), ""))) for i in range(count))
    return named if any(named) else (), False
