"""How alike the outputs of any two heads are: linear CKA of what they write, on sampled tokens.

CKA (Kornblith et al., 2019) of two heads' contributions X and Y, tokens by width and centred:
``|X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F)``, 0 to 1, blind to rotations. For pairs across layers the
outputs of both must be at hand, so it is computed exactly on a fixed sample of tokens: those with
the smallest random numbers, which depend on the example's id and the token's place alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.importance.behaviours.probe_sequences import generator_of
from analysis.statistics import LEVEL, poisson_weights
from probes.heads import Site
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch

MOST_TOKENS = 2_048
_ENTRIES = 1 << 28
"""Numbers kept in a sample: 1 GiB. Larger towers get fewer tokens."""
_COLUMNS = 4_096
_SHUFFLES = 5
_PAD = ROLES.index("pad")
_FLOPS = 2e12
"""Work that a bootstrap may cost; larger towers get fewer replicates, or no interval."""
_FEWEST_REPLICATES = 20


@dataclass
class _Kept:
    priority: Tensor
    examples: list[str]
    z: dict[Site, Tensor] = field(default_factory=dict)


class OutputSample:
    """Keeps the heads' outputs on a fixed random sample of each tower's tokens.

    Args:
        grams: by site float32 ``[head width width]``: W W^T of the output matrices; None where they
            are not known, and outputs are compared before them.

    Attributes:
        reasons: tower -> why its outputs cannot be compared.
    """

    def __init__(
        self, grams: Mapping[Site, Tensor | None], most: int = MOST_TOKENS, seed: int = 0
    ) -> None:
        self.seed = seed
        self.reasons: dict[str, str] = {}
        self._grams = grams
        self._most = most
        self._kept: dict[str, _Kept] = {}
        self._batch: Batch | None = None
        self._parts: dict[Site, list[tuple[Tensor, Tensor]]] = {}

    def start(self, batch: Batch) -> None:
        """A batch is about to run."""
        self._batch = batch
        self._parts.clear()

    def listener(self, call: AttentionCall) -> None:
        """Note the outputs of a call. Attach this to the tap."""
        if call.query_index is None:
            self.reasons[call.site.tower] = (
                f"The positions of {call.site.tower} are not known in its attention calls, so the "
                "outputs of its heads are not compared."
            )
            return
        z = call.z.detach().transpose(1, 2).flatten(0, 1)
        self._parts.setdefault(call.site, []).append((call.query_index.flatten().cpu(), z))

    def finish_batch(self) -> None:
        """Take from the batch what belongs into the sample."""
        assert self._batch is not None
        by_tower: dict[str, list[Site]] = {}
        for site in self._parts:
            by_tower.setdefault(site.tower, []).append(site)
        for tower, sites in by_tower.items():
            if tower not in self.reasons:
                self._take(tower, sites, self._batch.tokens[tower])
        self._parts.clear()

    def outputs(self, tower: str) -> Tensor:
        """Float32 ``[head token width]``: centred; inner products are those of contributions."""
        kept = self._kept[tower]
        widest = max(z.shape[-1] for z in kept.z.values())
        device = next(iter(kept.z.values())).device
        parts = []
        for site in sorted(kept.z):
            z = kept.z[site].float().transpose(0, 1)
            gram = self._grams.get(site)
            if gram is not None:
                z = z @ _root(gram.to(z.device))
            parts.append(torch.nn.functional.pad(z, (0, widest - z.shape[-1])).to(device))
        every = torch.cat(parts)
        return every - every.mean(1, keepdim=True)

    def sites(self, tower: str) -> dict[Site, int]:
        """Heads of each site, in the order of `outputs`."""
        kept = self._kept[tower]
        return {site: kept.z[site].shape[1] for site in sorted(kept.z)}

    def examples(self, tower: str) -> list[str]:
        """``[token]``: the example that each token of the sample is of."""
        return self._kept[tower].examples

    @property
    def towers(self) -> list[str]:
        return [name for name in self._kept if name not in self.reasons]

    def _take(self, tower: str, sites: list[Site], tokens: TowerTokens) -> None:
        assert self._batch is not None
        known = self._kept.get(tower)
        index, z = None, {}
        for site in sites:
            own = torch.cat([part[0] for part in self._parts[site]])
            values = torch.cat([part[1] for part in self._parts[site]])
            real = (own >= 0) & (tokens.role[own.clamp_min(0)] != _PAD)
            order = own[real].argsort()
            place = own[real][order]
            z[site] = values[real.nonzero()[:, 0][order].to(values.device)]
            if index is not None and not torch.equal(index, place):
                self.reasons[tower] = (
                    f"The layers of {tower} have outputs at different positions, so the outputs "
                    "of its heads are not compared."
                )
                return
            index = place
        assert index is not None
        if known is not None and set(known.z) != set(z):
            self.reasons[tower] = (
                f"Not every example reaches the same layers of {tower}, so the outputs of its "
                "heads are not compared."
            )
            return
        owner = tokens.example[index]
        priority = self._priorities(tower, owner)
        names = [self._batch.examples[number].id for number in owner.tolist()]
        if known is not None:
            priority = torch.cat([known.priority, priority])
            names = known.examples + names
            z = {site: torch.cat([known.z[site], new]) for site, new in z.items()}
        most = min(self._most, _ENTRIES // sum(v.shape[1] * v.shape[2] for v in z.values()))
        best = priority.argsort(stable=True)[: max(most, 2)]
        self._kept[tower] = _Kept(
            priority[best],
            [names[number] for number in best.tolist()],
            {site: values[best.to(values.device)] for site, values in z.items()},
        )

    def _priorities(self, tower: str, owner: Tensor) -> Tensor:
        assert self._batch is not None
        found = torch.empty(len(owner), dtype=torch.float64)
        for example in owner.unique().tolist():
            mine = owner == example
            name = self._batch.examples[example].id
            generator = generator_of("tokens", self.seed, tower, name)
            found[mine] = torch.rand(int(mine.sum()), dtype=torch.float64, generator=generator)
        return found


def cka(outputs: Tensor) -> Tensor:
    """Float64 ``[head head]`` of centred ``[head token width]``; NaN where a head never varies."""
    heads, _, width = outputs.shape
    step = max(1, _COLUMNS // width)
    total = torch.zeros(heads, heads, dtype=torch.float64)
    flat = outputs.transpose(0, 1)
    for first in range(0, heads, step):
        left = flat[:, first : first + step].flatten(1)
        for second in range(first, heads, step):
            right = flat[:, second : second + step].flatten(1)
            squares = (left.T @ right).double().square()
            block = squares.unflatten(0, (-1, width)).unflatten(2, (-1, width)).sum((1, 3)).cpu()
            total[first : first + step, second : second + step] = block
            total[second : second + step, first : first + step] = block.T
    total = (total + total.T) / 2
    own = total.diagonal().sqrt()
    scale = own[:, None] * own
    return (total / scale).masked_fill(scale == 0, float("nan")).clamp(max=1.0)


def shuffled_cka(outputs: Tensor, partner: Tensor, seed: int = 0) -> Tensor:
    """Float64 ``[head]``: CKA with the partner's tokens in random order, mean of five orders."""
    generator = generator_of("shuffled", seed, outputs.shape[1])
    found = []
    for _ in range(_SHUFFLES):
        order = torch.randperm(outputs.shape[1], generator=generator).to(outputs.device)
        found.append(_pair(outputs, outputs[partner.to(outputs.device)][:, order]))
    return torch.stack(found).mean(0)


def cka_interval(
    outputs: Tensor, partner: Tensor, examples: list[str], replicates: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ``[head]`` of the CKA with the partner, resampling examples (not tokens).

    NaN with fewer than 2 examples, and where more work would be needed than is worth it.
    """
    heads, tokens, width = outputs.shape
    known = dict.fromkeys(examples)
    work = 6.0 * heads * tokens * width**2
    replicates = min(replicates, int(_FLOPS / work))
    if len(known) < 2 or replicates < _FEWEST_REPLICATES:
        nothing = np.full(heads, np.nan)
        return nothing, nothing
    weights = {name: poisson_weights(name, replicates, seed) for name in known}
    drawn = np.stack([weights[name] for name in examples], axis=1)
    found = []
    for one in torch.from_numpy(drawn).to(outputs.device, torch.float32):
        if float(one.sum()) == 0:
            continue
        centred = outputs - (one[:, None] * outputs).sum(1, keepdim=True) / one.sum()
        weighted = centred * one.sqrt()[:, None]
        found.append(_pair(weighted, weighted[partner.to(outputs.device)]))
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(torch.stack(found).numpy(), [tail, 1 - tail], axis=0)
    return low, high


def _pair(left: Tensor, right: Tensor) -> Tensor:
    """Float64 ``[head]``: CKA of each pair of ``[head token width]``."""

    def squares(one: Tensor, other: Tensor) -> Tensor:
        return torch.bmm(one.transpose(1, 2), other).double().square().sum((1, 2))

    scale = (squares(left, left) * squares(right, right)).sqrt()
    value = squares(left, right) / scale
    return value.masked_fill(scale == 0, float("nan")).clamp(max=1.0).cpu()


def _root(gram: Tensor) -> Tensor:
    """``[head width width]``: S with S S^T = gram, so that z S has the contributions' products."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp_min(0).sqrt()[:, None, :]).float()
