"""How alike the attention rows of any two heads of a tower are, also across layers.

Layers run one after the other, so rows of all layers must be kept until the last: for each
sequence a fixed random choice of its queries, as few as the number of heads and keys calls for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.behaviours.probe_sequences import generator_of
from probes.heads import Site
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch

MOST_ROWS = 64
_FEWEST_ROWS = 4
_ENTRIES = 1 << 24
"""Weights kept per sequence: 64 MiB."""
_PAD = ROLES.index("pad")


@dataclass
class _Tower:
    """What is kept of one tower for one batch.

    Attributes:
        chosen: long ``[batch row]``: the queries whose rows are kept, -1 where there are fewer.
        example: long ``[batch]``.
        unit: by site ``[batch head row key]``: rows of length 1.
        allowed: by site bool ``[batch row key]``: keys that a row may read in that layer.
        readable: long ``[batch row]``: fewest keys that a row may read in any layer.
        device: where rows are kept.
    """

    chosen: Tensor
    example: Tensor
    device: torch.device
    unit: dict[Site, Tensor] = field(default_factory=dict)
    allowed: dict[Site, Tensor] = field(default_factory=dict)
    readable: Tensor | None = None


class PatternRows:
    """Listens to one forward and tells how alike its heads' rows are.

    Args:
        heads: tower -> number of its heads; decides how many rows are kept.
        seed: of the choice of queries, which depends on the example's id besides.

    Attributes:
        reasons: tower -> why its rows cannot be compared.
    """

    def __init__(self, heads: dict[str, int], seed: int = 0) -> None:
        self.heads, self.seed = heads, seed
        self.reasons: dict[str, str] = {}
        self._batch: Batch | None = None
        self._towers: dict[str, _Tower] = {}

    def start(self, batch: Batch) -> None:
        """Forget the last batch and expect this one."""
        self._batch = batch
        self._towers.clear()

    @property
    def towers(self) -> list[str]:
        """Towers whose rows were kept in every layer."""
        return [
            name
            for name, kept in self._towers.items()
            if sum(part.shape[1] for part in kept.unit.values()) == self.heads[name]
        ]

    def listener(self, call: AttentionCall) -> None:
        """Keep rows of a call. Attach this to the tap."""
        name = call.site.tower
        if name in self.reasons:
            return
        kept = self._towers.get(name)
        why = self._unfit(call, kept)
        if why:
            self.reasons[name] = why
            self._towers.pop(name, None)
            return
        if kept is None:
            kept = self._towers[name] = self._choose(call)
        # Layers may lie on several devices; what is kept lies together.
        rows, allowed = (part.to(kept.device) for part in _rows_at(call, kept.chosen))
        kept.unit[call.site] = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        kept.allowed[call.site] = allowed
        readable = allowed.sum(-1)
        fewest = readable if kept.readable is None else torch.minimum(kept.readable, readable)
        kept.readable = fewest

    def similarity(self, tower: str) -> tuple[Tensor, Tensor]:
        """Float64 ``[example head head]`` sums of cosines over rows, ``[example]`` rows counted.

        Rows that may read a single key are alike in all heads and do not count.
        """
        kept, counted = self._counted(tower)
        total = torch.zeros(self._examples, self.heads[tower], self.heads[tower]).double()
        for number, example in enumerate(kept.example.tolist()):
            unit = torch.cat([part[number] for part in _in_order(kept.unit)])
            flat = unit[:, counted[number]].flatten(1)
            total[example] += (flat @ flat.T).double().cpu()
        return total, self._rows_of(kept, counted)

    def to_partner(self, tower: str, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the cosine with one other head each, and of its null.

        The null is the mean cosine where the other head's weights are shuffled among the keys that
        its row may read: each of them then has the mean of these weights. Layers may differ in
        those keys (sliding windows).

        Args:
            partner: long ``[head]``.

        Returns:
            Float64 ``[example head]`` twice, and ``[example]`` rows counted.
        """
        kept, counted = self._counted(tower)
        total = torch.zeros(2, self._examples, self.heads[tower]).double()
        counts = torch.tensor([part.shape[1] for part in _in_order(kept.unit)])
        layer = torch.arange(len(counts)).repeat_interleave(counts).to(kept.device)
        for number, example in enumerate(kept.example.tolist()):
            rows = counted[number]
            unit = torch.cat([part[number] for part in _in_order(kept.unit)])[:, rows]
            allowed = torch.stack([part[number] for part in _in_order(kept.allowed)])[:, rows]
            other = partner.to(unit.device)
            theirs = allowed[layer[other]]
            mean = unit[other].sum(-1) / theirs.sum(-1)
            total[0, example] += (unit * unit[other]).sum((1, 2)).double().cpu()
            total[1, example] += ((unit * theirs).sum(-1) * mean).sum(1).double().cpu()
        return total[0], total[1], self._rows_of(kept, counted)

    @property
    def _examples(self) -> int:
        assert self._batch is not None
        return self._batch.size

    def _counted(self, tower: str) -> tuple[_Tower, Tensor]:
        kept = self._towers[tower]
        assert kept.readable is not None
        return kept, (kept.chosen.to(kept.device) >= 0) & (kept.readable > 1)

    def _rows_of(self, kept: _Tower, counted: Tensor) -> Tensor:
        count = torch.zeros(self._examples, dtype=torch.float64)
        return count.index_add_(0, kept.example, counted.sum(1).double().cpu())

    def _unfit(self, call: AttentionCall, kept: _Tower | None) -> str:
        tokens = self._tokens(call)
        if tokens is None or call.query_index is None or call.site.tower not in self.heads:
            return (
                f"The positions of {call.site.tower} are not known in its attention calls, so the "
                "patterns of its heads are not compared."
            )
        whole = tokens.rows == call.batch and bool((tokens.lengths == call.queries).all())
        same = kept is None or all(part.shape[-1] == call.keys for part in kept.unit.values())
        if not whole or not same or (kept is not None and call.site in kept.unit):
            return (
                f"The layers of {call.site.tower} attend within windows or packed sequences, so "
                "rows of two layers are not over the same keys and their patterns are not compared."
            )
        return ""

    def _tokens(self, call: AttentionCall) -> TowerTokens | None:
        assert self._batch is not None
        return self._batch.tokens.towers.get(call.site.tower)

    def _choose(self, call: AttentionCall) -> _Tower:
        tokens = self._tokens(call)
        assert tokens is not None and self._batch is not None
        owner = tokens.example[tokens.starts[:-1]]
        picked, seen = [], {}
        for row, example in enumerate(owner.tolist()):
            first = int(tokens.starts[row])
            role = tokens.role[first : int(tokens.starts[row + 1])]
            real = (role != _PAD).nonzero()[:, 0]
            most = _ENTRIES // max(self.heads[call.site.tower] * len(real), 1)
            most = min(max(most, _FEWEST_ROWS), MOST_ROWS)
            number = seen[example] = seen.get(example, -1) + 1
            name = self._batch.examples[example].id if example >= 0 else ""
            generator = generator_of("rows", self.seed, name, number)
            picked.append(real[torch.randperm(len(real), generator=generator)[:most]])
        width = max(len(one) for one in picked)
        chosen = torch.full((len(picked), width), -1)
        for row, one in enumerate(picked):
            chosen[row, : len(one)] = one.sort().values
        return _Tower(chosen, owner, call.device)


def _rows_at(call: AttentionCall, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch head row key]`` of the chosen queries; bool ``[batch row key]``: readable or not."""
    chosen = chosen.to(call.device)
    rows = torch.zeros(*chosen.shape, call.heads, call.keys, device=call.device)
    readable = torch.zeros(*chosen.shape, call.keys, dtype=torch.bool, device=call.device)
    for tile in call.tiles():
        here = chosen[tile.batch]
        inside = (here >= tile.rows.start) & (here < tile.rows.stop)
        batch, row = inside.nonzero().T
        if not len(batch):
            continue
        query = here[batch, row] - tile.rows.start
        allowed = tile.allowed().any(1)
        allowed = allowed.expand(tile.pattern.shape[0], *allowed.shape[1:]).to(call.device)
        first = batch + tile.batch.start
        rows[first, row, :, : tile.keys] = tile.pattern[batch, :, query]
        readable[first, row, : tile.keys] = allowed[batch, query]
    return rows.transpose(1, 2), readable


def _in_order(by_site: dict[Site, Tensor]) -> list[Tensor]:
    return [by_site[site] for site in sorted(by_site)]
