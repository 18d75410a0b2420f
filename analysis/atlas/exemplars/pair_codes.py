"""Pairs of a query token and a key token as one number each, and back.

A text token stands for itself, every other position for its role. Keys that are sinks by what they
are (BOS, CLS, registers, the first key) are not told apart by query token but by the query's role:
one pair for all that rest there. A query's own position is a key of its own kind. Two patches of
one image stand for the offset from query to key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.atlas.exemplars.reach import STANDING, Reach
from analysis.call_plan import CallPlan
from probes.tokens.map import ROLES

_ROLE_ROOM = 16
_SELF, _FIRST = 14, 15
_QUERY_SHIFT = 32
_OFFSET = 1 << 31
_HALF = 1 << 14
_SPELT = torch.tensor([ROLES.index(n) for n in ("text", "system", "special", "generated")])
_IMAGE = ROLES.index("image")
_STANDING = [ROLES.index(name) for name in STANDING]


@dataclass(frozen=True)
class PairName:
    """A pair in words.

    Attributes:
        query, key: token text, or a role in angle brackets; ``<self>`` is the query's own position,
            ``<first>`` the first key of a sequence that does not begin with BOS or CLS; for patches
            both are ``<image>``.
        row_offset, column_offset: from query to key in patches, None for other pairs.
        sink: whether the key is a sink by what it is.
    """

    query: str
    key: str
    row_offset: int | None = None
    column_offset: int | None = None
    sink: bool = False


def pair_codes(plan: CallPlan, reach: Reach, batch: Tensor, queries: Tensor, keys: int) -> Tensor:
    """Long ``[row key]``: the codes of the pairs of some query rows with the first ``keys`` keys.

    Args:
        batch, queries: long ``[row]``.
    """

    def of_q(column: str) -> Tensor:
        return plan.of_queries(column)[batch, queries][:, None]

    def of_k(column: str) -> Tensor:
        return plan.of_keys(column)[:, :keys][batch]

    query_role, key_role = of_q("role"), of_k("role")
    standing = reach.standing[:, :keys][batch]
    query = torch.where(standing, query_role, _symbols(of_q("ids"), query_role))
    first = key_role.masked_fill(torch.isin(key_role, _SPELT.to(key_role.device)), _FIRST)
    key = torch.where(standing, first, _symbols(of_k("ids"), key_role))
    assert plan.tokens is not None and plan.key_tokens is not None
    if plan.tokens.tower == plan.key_tokens.tower:
        patches = (query_role == _IMAGE) & (key_role == _IMAGE)
        patches &= (of_q("row") >= 0) & (of_k("row") >= 0)
        for column in ("image", "tile"):
            patches &= of_q(column) == of_k(column)
        down = (of_k("row") - of_q("row") + _HALF).clamp(0, 2 * _HALF - 1)
        right = (of_k("column") - of_q("column") + _HALF).clamp(0, 2 * _HALF - 1)
        key = torch.where(patches, _OFFSET + down * 2 * _HALF + right, key)
        query = torch.where(patches, query_role, query)
        own = plan.key_index[:, :keys][batch] == plan.query_index[batch, queries][:, None]
        key = torch.where(own & ~standing & ~patches, _SELF, key)
    return (query << _QUERY_SHIFT) + key


def _symbols(ids: Tensor, role: Tensor) -> Tensor:
    spelt = (ids >= 0) & torch.isin(role, _SPELT.to(role.device))
    return torch.where(spelt, ids + _ROLE_ROOM, role.clamp_min(0))


def pair_name(code: int, names: dict[int, str], key_names: dict[int, str]) -> PairName:
    """A code in words.

    Args:
        names, key_names: token id -> text, for queries and for keys.
    """
    query, key = code >> _QUERY_SHIFT, code & ((1 << _QUERY_SHIFT) - 1)
    if key >= _OFFSET:
        down, right = divmod(key - _OFFSET, 2 * _HALF)
        return PairName("<image>", "<image>", down - _HALF, right - _HALF)
    standing = key == _FIRST or key in _STANDING
    return PairName(_word(query, names), _word(key, key_names), sink=standing)


def _word(symbol: int, names: dict[int, str]) -> str:
    if symbol in (_SELF, _FIRST):
        return "<self>" if symbol == _SELF else "<first>"
    if symbol < _ROLE_ROOM:
        return f"<{ROLES[symbol]}>"
    return names.get(symbol - _ROLE_ROOM) or f"<{symbol - _ROLE_ROOM}>"
