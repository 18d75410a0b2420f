"""Which keys of an attention call are sinks: looked at whatever the query, and saying nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.tokens.map import ROLES, TokenMap

SINK_ROLES = ("bos", "cls", "register")
SINK_WEIGHT = 0.3
"""Mean attention that a key receives, above which it counts as a sink (Gu et al., ICLR 2025)."""
_FEWEST_READERS = 0.25
_PAD = ROLES.index("pad")


def sink_keys(call: AttentionCall, tokens: TokenMap | None) -> Tensor:
    """Bool ``[batch key]``: keys of role bos, cls or register, and keys that draw attention.

    A key draws attention if the other positions that may read it give it more than `SINK_WEIGHT`
    on average over them and over the heads. A position's attention to itself is left out, and
    keys that fewer than a quarter as many queries may read as the most readable one are not
    judged: the last keys of a causal sequence have hardly any readers.
    """
    shape = (call.batch, call.keys)
    received = torch.zeros(shape, device=call.device)
    readers = torch.zeros(shape, device=call.device)
    real = real_queries(call, tokens)
    for tile in call.tiles():
        used = real[tile.batch, tile.rows]
        other = used[:, :, None] & ~own_position(call, tile.batch, tile.rows, tile.keys)
        received[tile.batch, : tile.keys] += (tile.pattern.mean(1) * other).sum(1)
        readers[tile.batch, : tile.keys] += (tile.allowed().any(1) & other).sum(1)
    enough = readers >= _FEWEST_READERS * readers.amax(1, keepdim=True).clamp_min(1)
    drawn = enough & (received > SINK_WEIGHT * readers)
    role = _roles(call.key_index, tokens, call.key_tower or call.site.tower, shape)
    named = torch.tensor([ROLES.index(name) for name in SINK_ROLES])
    return drawn | torch.isin(role, named).to(call.device)


def real_queries(call: AttentionCall, tokens: TokenMap | None) -> Tensor:
    """Bool ``[batch query]``: queries that are no padding."""
    shape = (call.batch, call.queries)
    role = _roles(call.query_index, tokens, call.site.tower, shape)
    return (role != _PAD).to(call.device)


def own_position(call: AttentionCall, batch: slice, rows: slice, keys: int) -> Tensor:
    """Bool ``[batch row key]``: pairs in which a position reads itself."""
    query, key = call.query_index, call.key_index
    if (call.key_tower or call.site.tower) != call.site.tower:
        return torch.zeros(1, 1, 1, dtype=torch.bool, device=call.device)
    if query is None or key is None:
        queries = torch.arange(call.queries, device=call.device)[rows]
        return (queries[:, None] == torch.arange(keys, device=call.device))[None]
    same = query[batch, rows, None] == key[batch, None, :keys]
    return same.to(call.device)


def _roles(
    index: Tensor | None, tokens: TokenMap | None, tower: str, shape: tuple[int, int]
) -> Tensor:
    """Long, of ``shape``: the role of each position, -1 where it is not known."""
    if index is None or tokens is None or tower not in tokens:
        return torch.full(shape, -1)
    role = torch.cat([tokens[tower].role, torch.tensor([-1])])
    return role[index.cpu()]
