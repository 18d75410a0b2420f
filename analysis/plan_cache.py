"""Plans of attention calls, shared between layers that mask and place their positions alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.call_plan import CallPlan, make_plan
from probes.attention_call import AttentionCall
from probes.masks import FORBIDDEN, AttentionMask
from probes.tokens.map import TokenMap


@dataclass
class _Entry:
    query_index: Tensor | None
    key_index: Tensor | None
    mask: Tensor | None
    plan: CallPlan | str


class PlanCache:
    """Finds the plan of a call among those of the batch, or makes it."""

    def __init__(self, tokens: TokenMap | None, examples: int) -> None:
        self._tokens = tokens
        self._examples = examples
        self._entries: dict[tuple[object, ...], list[_Entry]] = {}

    def find(self, call: AttentionCall) -> tuple[CallPlan | str, bool]:
        """The plan (or why there is none), and whether it is new."""
        key = (
            call.site.tower, call.key_tower, call.step, call.batch, call.queries, call.keys,
            call.mask.causal, call.whole is None, call.device,
        )  # fmt: skip
        entries = self._entries.setdefault(key, [])
        mask = _mask_of(call)
        for entry in entries:
            if (
                _same(entry.query_index, call.query_index)
                and _same(entry.key_index, call.key_index)
                and _same_mask(entry.mask, mask.tensor)
            ):
                return entry.plan, False
        plan = make_plan(call, mask, self._tokens, self._examples)
        entries.append(_Entry(call.query_index, call.key_index, mask.tensor, plan))
        return plan, True


def _mask_of(call: AttentionCall) -> AttentionMask:
    if call.whole is None:
        return call.mask
    return AttentionMask(call.queries, call.keys, tensor=(call.whole > 0).any(1, keepdim=True))


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return left is right or (left.shape == right.shape and torch.equal(left, right))


def _same_mask(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None or left is right:
        return left is right
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.dtype == torch.bool:
        return torch.equal(left, right)
    return torch.equal(left > FORBIDDEN, right > FORBIDDEN)
