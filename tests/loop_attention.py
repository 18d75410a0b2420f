"""A slow oracle for edits of attention: a model whose every attention is written in loops.

One prompt at a time, without padding, in the model's own `generate`: nothing of what is tested is
used. A rule may change the scores or the weights of each row, as lists of numbers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "four_loops"


@dataclass
class Row:
    """One row of one attention.

    Attributes:
        tower, layer, head, query: where it is; ``query`` counts from the start of the text.
        last: whether the next token is decided on it.
        values: ``[key][width]`` of its head.
    """

    tower: str
    layer: int
    head: int
    query: int
    last: bool
    values: list[list[float]]


@dataclass
class Rule:
    """What is done to rows; the base does nothing and remembers the vision tower's weights."""

    seen: dict[tuple[int, int, int], list[float]] = field(default_factory=dict)
    """(layer, head, query) of the vision tower -> weights."""
    values: dict[tuple[int, int], list[list[float]]] = field(default_factory=dict)
    """(layer, head) of the vision tower -> ``[key][width]``."""

    def scores(self, row: Row, scores: list[float]) -> list[float]:
        return scores

    def weights(self, rows: list[tuple[Row, list[float]]]) -> list[list[float]]:
        """All heads of a query at once, as some rules compare heads."""
        for row, weights in rows:
            if row.tower == "vision":
                self.seen[row.layer, row.head, row.query] = weights
                self.values[row.layer, row.head] = row.values
        return [weights for _, weights in rows]


def looping(model: Any, rule: Rule) -> Any:
    """A copy of the model that computes each attention in loops, under a rule."""
    AttentionInterface.register(NAME, _attend)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation({"": NAME, "text_config": NAME, "vision_config": NAME})
    numbers = {"vision": 0, "language": 0}
    for path, module in twin.named_modules():
        if hasattr(module, "q_proj"):
            tower = "vision" if "vision" in path else "language"
            module.loop_place = (tower, numbers[tower], rule)
            numbers[tower] += 1
    return twin


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **settings: Any
) -> tuple[Tensor, None]:
    tower, layer, rule = module.loop_place  # type: ignore[misc]
    assert mask is None and query.shape[0] >= 1
    batch, heads, queries, _ = query.shape
    keys, group = key.shape[2], heads // key.shape[1]
    scale, causal = settings["scaling"], tower == "language"
    out = torch.zeros(batch, queries, heads, value.shape[3])
    q, k, v = query.double().tolist(), key.double().tolist(), value.double().tolist()
    for b in range(batch):
        for i in range(queries):
            here = keys - queries + i
            rows = []
            for h in range(heads):
                allowed = here + 1 if causal else keys
                mine = v[b][h // group][:allowed]
                row = Row(tower, layer, h, here, here == keys - 1, mine)
                scores = [
                    scale * sum(x * y for x, y in zip(q[b][h][i], k[b][h // group][j], strict=True))
                    for j in range(allowed)
                ]
                scores = rule.scores(row, scores)
                top = max(scores)
                powers = [math.exp(score - top) for score in scores]
                rows.append((row, [power / sum(powers) for power in powers]))
            for h, weights in enumerate(rule.weights(rows)):
                for j, weight in enumerate(weights):
                    out[b, i, h] += weight * value[b, h // group, j]
    return out.to(query.dtype), None


def written(model: Any, tensors: dict[str, Any], count: int) -> tuple[list[int], Tensor]:
    """The tokens that a model writes greedily after one prompt, and its logits ``[step word]``."""
    with torch.no_grad():
        made = model.generate(
            **tensors, max_new_tokens=count, min_new_tokens=count, do_sample=False,
            return_dict_in_generate=True, output_logits=True, pad_token_id=0,
        )  # fmt: skip
    ids = made.sequences[0, -count:].tolist()
    return ids, torch.cat(made.logits)
