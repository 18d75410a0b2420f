"""Attention patterns whose kind is known, with what the measures say of each.

Everything is drawn on a patch grid read row by row, so that "previous" is also the patch on the
left and a band lies one row up or down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from synthetic_calls import image_tokens, scored, text_tokens, whole_call

from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.pooling import pool
from probes.masks import AttentionMask

KINDS = ("diagonal", "previous", "stripe", "block", "uniform", "row_band", "mixture")
GRIDS = ((8, 8), (11, 11), (14, 14))
SMALL_GRIDS = ((5, 5), (6, 7), (7, 9))
TEXT_MEASURES = (
    "self_attention", "previous_token", "next_token", "best_offset", "duplicate_token",
    "induction", "entropy_normalised", "confidence", "first_key", "stripe", "block",
    "attention_distance_ratio",
)  # fmt: skip
PATCH_MEASURES = ("row_band", "local_share", "mean_hop")
_TOGETHER = 100

Array = NDArray[np.float64]
Dice = np.random.Generator


def drawn(kind: str, grid: tuple[int, int], dice: Dice, causal: bool = False) -> Array:
    """``[query key]``: one pattern of a kind; rows sum to one.

    Stripes lie on one to three random keys, blocks are two to six contiguous groups with random
    borders, a mixture has Dirichlet(1) shares of one pattern of each other kind.
    """
    count = grid[0] * grid[1]
    place = np.arange(count)
    pattern = np.zeros((count, count))
    if kind == "diagonal":
        pattern[place, place] = 1.0
    elif kind == "previous":
        pattern[place, np.maximum(place - 1, 0)] = 1.0
    elif kind == "stripe":
        # A causal query reads only what stands before it, so a late stripe would be empty.
        keys = dice.choice(count // 4 if causal else count, dice.integers(1, 4), replace=False)
        pattern[:, keys] = dice.dirichlet(np.full(len(keys), 3.0))
    elif kind == "block":
        borders = np.sort(dice.choice(np.arange(1, count), dice.integers(1, 6), replace=False))
        for start, stop in pairwise([0, *borders.tolist(), count]):
            pattern[start:stop, start:stop] = 1.0
    elif kind == "uniform":
        pattern[:] = 1.0
    elif kind == "row_band":
        for shift in (-grid[1], grid[1]):
            there = (place + shift >= 0) & (place + shift < count)
            pattern[place[there], place[there] + shift] = 1.0
    elif kind == "mixture":
        shares = dice.dirichlet(np.ones(len(KINDS) - 1))
        for share, other in zip(shares, KINDS[:-1], strict=True):
            pattern += share * drawn(other, grid, dice, causal)
    else:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")
    return _rows(pattern, causal)


def random_rows(count: int, concentration: float, dice: Dice, causal: bool = False) -> Array:
    """``[query key]``: each row drawn from a Dirichlet distribution, so there is no structure."""
    return _rows(dice.gamma(concentration, size=(count, count)) + 1e-30, causal)


def planted_set(
    kinds: Sequence[str] = KINDS,
    per_kind: int = 200,
    *,
    grids: Sequence[tuple[int, int]] = GRIDS,
    noise: float = 0.2,
    side: int = 64,
    seed: int = 0,
    causal: bool = False,
    heads: int = 5,
) -> tuple[PatternSet, NDArray[np.int64]]:
    """Patterns of each kind in turn over the grids, and the number of the kind of each.

    Args:
        noise: the largest share of random rows that is mixed in; each sample has half to all.
        heads: each kind is the work of so many heads of a layer of its own.
    """
    dice = np.random.default_rng(seed)
    parts, lines = [], []
    for number, kind in enumerate(kinds):
        for index in range(per_kind):
            grid = grids[index % len(grids)]
            share = noise * dice.uniform(0.5, 1.0)
            made = (1 - share) * drawn(kind, grid, dice, causal)
            made += share * random_rows(grid[0] * grid[1], 0.3, dice, causal)
            parts.append((made, grid))
            lines.append(("vision", number, index % heads, f"{index // heads:04d}"))
    return _as_set(parts, lines, side, seed, causal), np.repeat(np.arange(len(kinds)), per_kind)


def noise_set(
    count: int = 400,
    *,
    grids: Sequence[tuple[int, int]] = GRIDS,
    concentration: float = 0.3,
    side: int = 64,
    seed: int = 0,
    causal: bool = False,
) -> PatternSet:
    """Random rows and nothing else."""
    dice = np.random.default_rng(seed)
    parts, lines = [], []
    for index in range(count):
        grid = grids[index % len(grids)]
        parts.append((random_rows(grid[0] * grid[1], concentration, dice, causal), grid))
        lines.append(("vision", 0, index % 4, f"{index // 4:04d}"))
    return _as_set(parts, lines, side, seed, causal)


def measured(
    patterns: Array, grid: tuple[int, int], causal: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and nulls of patterns ``[pattern query key]`` on one grid, a line per pattern.

    Each pattern is a head of one call, read once as a text that says everything twice and once as
    an image.
    """
    heads, count = patterns.shape[:2]
    half = (count + 1) // 2
    ids = [place % half for place in range(count)]
    values, nulls = {}, {}
    for tokens, measures in (
        (text_tokens([ids], bos=False), TEXT_MEASURES),
        (image_tokens(grid, cls=False), PATCH_MEASURES),
    ):
        whole = torch.from_numpy(patterns).float()[None]
        call = whole_call(whole, tokens)
        call = replace(call, mask=AttentionMask(count, count, causal=causal))
        scores = scored(call, tokens, measures=list(measures))
        for column, value, null in zip(
            scores.columns, scores.values.tolist(), scores.null_values.tolist(), strict=True
        ):
            name = f"{column.measure}[{column.variant}]" if column.variant else column.measure
            values.setdefault(name, [np.nan] * heads)[column.head] = value
            nulls.setdefault(name, [np.nan] * heads)[column.head] = null
    return pd.DataFrame(values), pd.DataFrame(nulls)


def _rows(pattern: Array, causal: bool) -> Array:
    if causal:
        pattern = np.tril(pattern)
    empty = pattern.sum(1) == 0
    pattern[empty, np.arange(len(pattern))[empty]] = 1.0
    return pattern / pattern.sum(1, keepdims=True)


def _as_set(
    parts: list[tuple[Array, tuple[int, int]]],
    lines: list[tuple[str, int, int, str]],
    side: int,
    seed: int,
    causal: bool,
) -> PatternSet:
    images = [np.asarray(pool(pattern, side), np.float16) for pattern, _ in parts]
    lists: list[tuple[list[int], pd.DataFrame, pd.DataFrame]] = []
    for grid in dict.fromkeys(grid for _, grid in parts):
        mine = [index for index, (_, other) in enumerate(parts) if other == grid]
        for start in range(0, len(mine), _TOGETHER):
            some = mine[start : start + _TOGETHER]
            stacked = np.stack([parts[index][0] for index in some])
            lists.append((some, *measured(stacked, grid, causal)))
    order = np.argsort(np.concatenate([some for some, _, _ in lists]))
    features, nulls = (
        pd.concat([entry[place] for entry in lists], ignore_index=True).iloc[order]
        for place in (1, 2)
    )
    samples = pd.DataFrame(lines, columns=["tower", "layer", "head", "example"])
    counts = [grid[0] * grid[1] for _, grid in parts]
    samples = samples.assign(view="patches", queries=counts, keys=counts, causal=causal, part=0)
    return PatternSet(
        images=np.stack(images), samples=samples, features=features.reset_index(drop=True),
        nulls=nulls.reset_index(drop=True), side=side, seed=seed,
    )  # fmt: skip
