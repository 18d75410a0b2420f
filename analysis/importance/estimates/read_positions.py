"""At which positions of a tower the output is read: where maps over positions begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.readings import Reading
from probes.gradients import ZGradients
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.inputs import Batch

_CLS = ROLES.index("cls")


def read_positions(
    batch: Batch, tower: str, gradients: ZGradients, reading: Reading
) -> Tensor | str:
    """Float64 ``[position]`` in the order of the token map, summing to 1 in each example.

    The positions whose next token is read, where the tower is a language model's; else those that
    a gradient reaches behind the tower's last attention (after it, positions do not mix any
    more): the class token alone if it is one of them, all of them alike if not.

    Returns:
        Why there are none, in one sentence, if no gradient comes from the tower.
    """
    tokens = batch.tokens[tower]
    if reading.kind == "tokens" and tower in ("language", "decoder"):
        chosen = _at_reads(tokens, reading)
        if chosen is not None:
            return _shared(tokens, chosen, batch.size)
    used = [s for s in gradients.calls if s.tower == tower and s not in gradients.unused]
    if not used:
        return f"No gradient comes from {tower}, so nothing in it is read."
    chosen = torch.zeros(len(tokens) + 1)
    for call, gradient in gradients.by_call(max(used)):
        assert call.query_index is not None
        reached = (gradient != 0).any(-1).any(1).cpu()
        chosen[call.query_index.cpu()[reached]] = 1.0
    chosen = chosen[:-1]
    cls = chosen * (tokens.role == _CLS)
    has_cls = torch.zeros(batch.size).index_add_(0, tokens.example, cls) > 0
    chosen = torch.where(has_cls[tokens.example], cls, chosen)
    return _shared(tokens, chosen, batch.size)


def _at_reads(tokens: TowerTokens, reading: Reading) -> Tensor | None:
    if tokens.rows != reading.examples:
        return None
    where = tokens.starts[:-1][reading.example] + reading.position
    return torch.zeros(len(tokens)).index_add_(0, where, torch.ones(len(where)))


def _shared(tokens: TowerTokens, chosen: Tensor, examples: int) -> Tensor:
    chosen = chosen.double()
    total = chosen.new_zeros(examples).index_add_(0, tokens.example, chosen)
    return chosen / total.clamp_min(1e-300)[tokens.example]
