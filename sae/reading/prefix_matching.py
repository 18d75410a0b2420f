"""Long-prefix and short-prefix induction: how much of what came before must match.

A made sequence of distinct random tokens ends in a copy of the ``length`` tokens before some
source; an induction head then attends from the last token to the source. A head that needs one
matching token does so at once, a long-prefix head only where several match (Kissane et al. 2024,
arXiv 2406.17759, GPT-2's L5H5 and L5H1). Length 0 is the control: the same without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.direct.direct_path import direct_contributions
from probes.direct.residual_path import PathError
from probes.heads import Head, Site, select_heads
from probes.listening import listen
from sae.coders.coder import Coder
from sae.reading.latent_reading import chosen_latents, site_of, strengths_at
from sae.reading.prefix_sequences import sequences_for, targets

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

LENGTHS = tuple(range(10))
SAMPLES, BATCH = 400, 32

Features = Mapping[Site | str, tuple[Coder, int | Sequence[int]]]
"""A coder and some of its latents by site."""


@dataclass(frozen=True)
class PrefixCurves:
    """Means over samples by length of the copied prefix, with their standard errors.

    Attributes:
        lengths: tokens copied; 0 is the control.
        heads: names of the heads.
        attention: 0 to 1, from the last token to the one after the prefix's first occurrence.
        direct_logit: what the head adds to that token's logit minus the mean logit, along the
            residual stream alone; None where it is not measured.
        features: site and latent of each feature.
        strength: of the feature at the last token.
        missing: why ``direct_logit`` is not measured.
    """

    lengths: tuple[int, ...]
    heads: tuple[str, ...]
    attention: Float[Tensor, "length head"]
    attention_error: Float[Tensor, "length head"]
    direct_logit: Float[Tensor, "length head"] | None
    features: tuple[tuple[str, int], ...]
    strength: Float[Tensor, "length feature"]
    strength_error: Float[Tensor, "length feature"]
    samples: int
    missing: str = ""

    @property
    def needed_by_heads(self) -> Float[Tensor, "head"]:
        """Prefix length from which the attention, less the control, is half of its largest.

        1 for a head that one matching token satisfies; NaN where no length beats the control by two
        standard errors.
        """
        return _needed(self.lengths, self.attention, self.attention_error)

    @property
    def needed_by_features(self) -> Float[Tensor, "feature"]:
        """The same for strengths."""
        return _needed(self.lengths, self.strength, self.strength_error)


def prefix_curves(
    subject: Subject,
    heads: Any = "language.*",
    features: Features | None = None,
    *,
    words: Int[Tensor, "word"] | None = None,
    lengths: Sequence[int] = LENGTHS,
    sequence: int | None = None,
    samples: int = SAMPLES,
    batch_size: int = BATCH,
    seed: int = 0,
) -> PrefixCurves:
    """The prefix test on made sequences, of heads and of features.

    Sources, and all tokens but the copied ones, are the same at every length.

    Args:
        features: coder and latents by site.
        words: ids that sequences are drawn from, each at most once in a sequence; by default all
            that are not special.
        sequence: tokens with BOS; by default 128, or as many as words and context allow.

    Raises:
        ValueError: the sequence is too short for the longest prefix, or there is no language tower.
    """
    chosen = select_heads(heads, subject.towers)
    sites = list(dict.fromkeys(head.site for head in chosen))
    readers = {
        site_of(subject, coder, site).site: (coder, chosen_latents(coder, some))
        for site, (coder, some) in (features or {}).items()
    }
    drawn = sequences_for(subject, words, sequence, max(lengths), seed)
    found = _Sums(chosen, readers)
    missing = ""
    for length in lengths:
        found.begin()
        for batch, source in drawn.batches(subject, length, samples, batch_size):

            def hear(call: AttentionCall, source: Tensor = source) -> None:
                found.hear(call, source)

            with listen(subject, batch, hear, {*sites, *readers}):
                subject.forward(batch)
            if not missing:
                missing = found.add_direct(subject, batch, targets(batch, source))
    attention, strength = found.means("attention"), found.means("strength")
    direct = None if missing else found.means("direct")[0]
    return PrefixCurves(
        tuple(lengths),
        tuple(map(str, chosen)),
        *attention,
        direct,
        tuple((str(site), latent) for site, (_, some) in readers.items() for latent in some),
        *strength,
        samples,
        missing,
    )


@dataclass
class _Sums:
    """Sums and squares over samples, by length."""

    heads: list[Head]
    readers: Mapping[Site, tuple[Coder, list[int]]]
    kept: dict[str, list[list[Tensor]]] = field(default_factory=dict)

    def begin(self) -> None:
        for name in ("attention", "strength", "direct"):
            self.kept.setdefault(name, []).append([])
        self._attention: dict[Site, Tensor] = {}
        self._strength: dict[Site, Tensor] = {}

    def hear(self, call: AttentionCall, source: Int[Tensor, "example"]) -> None:
        tile = call.last_tile()
        rows = torch.arange(call.batch, device=call.device)
        self._attention[call.site] = tile.pattern[rows, :, 0, source.to(call.device)].cpu()
        if call.site in self.readers:
            coder, latents = self.readers[call.site]
            z = call.z[:, :, -1].flatten(1)
            self._strength[call.site] = strengths_at(coder, z)[:, latents].float().cpu()
        if {head.site for head in self.heads} | set(self.readers) <= set(self._attention):
            columns = [self._attention[head.site][:, head.head] for head in self.heads]
            self.kept["attention"][-1].append(torch.stack(columns, 1))
            parts = [self._strength[site] for site in self.readers]
            none = torch.zeros(call.batch, 0)
            self.kept["strength"][-1].append(torch.cat(parts, 1) if parts else none)
            self._attention, self._strength = {}, {}

    def add_direct(self, subject: Subject, batch: Batch, target: Int[Tensor, "example"]) -> str:
        """What heads add to the target's logit; why it cannot be told, else nothing."""

        def metric(output: Any) -> Tensor:
            logits = output.logits[:, -1]
            own = logits[torch.arange(len(logits)), target.to(logits.device)]
            return own - logits.mean(-1)

        try:
            sums = direct_contributions(subject, batch, metric).head_sums
        except PathError as why:
            return str(why)
        lost = next((head for head in self.heads if head.site not in sums), None)
        if lost is not None:
            return f"{lost} has no direct path to the logits."
        columns = [sums[head.site][:, head.head].float() for head in self.heads]
        self.kept["direct"][-1].append(torch.stack(columns, 1))
        return ""

    def means(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard error ``[length column]``."""
        every = [torch.cat(parts).double() for parts in self.kept[name]]
        mean = torch.stack([values.mean(0) for values in every])
        moments = [values.var(0) if values.shape[1] else values.sum(0) for values in every]
        spread = torch.stack([v / len(x) for v, x in zip(moments, every, strict=True)]).sqrt()
        return mean.float(), spread.float()


def _needed(lengths: Sequence[int], curves: Tensor, errors: Tensor) -> Tensor:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    rows, spread = curves[order], errors[order]
    control = lengths[order[0]] == 0
    gained = rows - rows[0] if control else rows
    noise = (spread.square() + spread[0].square()).sqrt() if control else spread
    reached = gained >= gained.amax(0) / 2
    at = torch.tensor([float(lengths[i]) for i in order])[reached.float().argmax(0)]
    return torch.where((gained > 2 * noise).any(0), at, torch.nan)
