"""Batches and attention calls that depend on example ids alone, for tests of exemplars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import torch
from synthetic_calls import text_tokens
from torch import Tensor

from analysis.atlas.exemplars import ExemplarCollector
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.inputs import Batch, Example
from probes.masks import AttentionMask
from probes.tokens.map import ROLES, TokenMap

Texts = dict[str, list[int]]
"""Example id -> token ids; the first is BOS."""


def texts(count: int, *, vocabulary: int = 17, seed: int = 0, longest: int = 23) -> Texts:
    """Random texts of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for number in range(count):
        length = int(torch.randint(5, longest, (1,), generator=draw))
        found[f"text-{number}"] = [0, *torch.randint(1, vocabulary, (length,), generator=draw)]
    return {name: [int(i) for i in ids] for name, ids in found.items()}


def text_batch(given: Texts, *, side: str = "right", width: int | None = None) -> Batch:
    """The texts as one batch; token 5 is written w5."""
    tokens = text_tokens(list(given.values()), side=side, width=width)
    pad = ROLES.index("pad")
    pairs = zip(tokens.ids.tolist(), tokens.role.tolist(), strict=True)
    words = tuple("<pad>" if role == pad else f"w{i}" for i, role in pairs)
    tokens = replace(tokens, text=words)
    examples = tuple(Example(name) for name in given)
    return Batch({}, TokenMap({"language": tokens}), examples)


def batch_call(
    batch: Batch, *, layer: int = 0, heads: int = 3, kv_heads: int = 0, seed: int = 0,
    sharpness: float = 3.0, dtype: torch.dtype = torch.float32,
) -> AttentionCall:  # fmt: skip
    """A causal call; query, key and value depend on the id of an example, not on its batch."""
    tokens = batch.tokens["language"]
    rows, length = tokens.rows, int(tokens.lengths[0])
    kv_heads = kv_heads or heads
    real = (tokens.role != ROLES.index("pad")).view(rows, length)
    query = torch.zeros(rows, heads, length, 7)
    key, value = torch.zeros(rows, kv_heads, length, 7), torch.zeros(rows, kv_heads, length, 5)
    for row, example in enumerate(batch.examples):
        draw = torch.Generator().manual_seed(crc32(f"{example.id} {seed} {layer}".encode()))
        count = int(real[row].sum())
        query[row, :, real[row]] = torch.randn(heads, count, 7, generator=draw) * sharpness
        key[row, :, real[row]] = torch.randn(kv_heads, count, 7, generator=draw)
        value[row, :, real[row]] = torch.randn(kv_heads, count, 5, generator=draw)
    return built_call(batch, query.to(dtype), key.to(dtype), value.to(dtype), layer=layer)


def built_call(
    batch: Batch, query: Tensor, key: Tensor, value: Tensor, *, layer: int = 0, scale: float = 1.0
) -> AttentionCall:
    """A causal call of a text batch, padding masked."""
    tokens = batch.tokens["language"]
    rows, length = tokens.rows, int(tokens.lengths[0])
    real = (tokens.role != ROLES.index("pad")).view(rows, length)
    allowed = real[:, None, None, :].expand(rows, 1, length, length).tril()
    index = torch.arange(len(tokens)).view(rows, length)
    call = AttentionCall(
        Site("language", layer), "attn", 0, value, torch.zeros(*query.shape[:3], value.shape[-1]),
        AttentionMask(length, length, tensor=allowed), query=query, key=key, scale=scale,
        query_index=index, key_index=index,
    )  # fmt: skip
    call.z = call.weighted_values().to(value.dtype)
    return call


def feed(collector: ExemplarCollector, batch: Batch, calls: Sequence[AttentionCall]) -> None:
    """One batch, from start to finish."""
    collector.start_batch(batch)
    for call in calls:
        collector.listener(call)
    collector.finish_batch()
