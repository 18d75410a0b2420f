"""Attention calls made by hand or at random, with token maps, for tests of measures."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from analysis.engine import Engine
from analysis.measures import select_measures
from analysis.scores import BatchScores
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.layout import SiteLayout
from probes.masks import AttentionMask
from probes.tokens.map import ROLES, TokenMap, TowerTokens, blank_tokens


class Anatomy:
    """An anatomy that knows one output matrix."""

    def __init__(self, matrix: Tensor | None, row_sums: str = "one") -> None:
        self.matrix, self.row_sums = matrix, row_sums
        self.anatomy = self

    def site(self, site: Site) -> SiteLayout:
        return SiteLayout(site, "", 1, 1, 1, 1, "sdpa", row_sums=self.row_sums)

    def output_matrix(self, site: Site) -> Tensor | None:
        return self.matrix


def text_tokens(
    ids: list[list[int]], *, width: int | None = None, side: str = "right", bos: bool = True
) -> TowerTokens:
    """Rows of token ids, padded to one width; the first token of each is bos."""
    width = max(map(len, ids)) if width is None else width
    tokens = blank_tokens("language", [width] * len(ids), list(range(len(ids))), "text")
    role, value = tokens.role.clone().view(-1, width), tokens.ids.clone().view(-1, width)
    for row, sequence in enumerate(ids):
        spare = width - len(sequence)
        start = spare if side == "left" else 0
        role[row] = ROLES.index("pad")
        value[row] = 0  # A pad token has an id of its own, which must not count.
        role[row, start : start + len(sequence)] = ROLES.index("text")
        value[row, start : start + len(sequence)] = torch.tensor(sequence)
        if bos:
            role[row, start] = ROLES.index("bos")
    return replace(tokens, role=role.flatten(), ids=value.flatten())


def image_tokens(
    grid: tuple[int, int], *, images: int = 1, cls: bool = True, tower: str = "vision"
) -> TowerTokens:
    """One image per example, patches in reading order after an optional CLS."""
    down, across = grid
    extra = int(cls)
    length = down * across + extra
    tokens = blank_tokens(tower, [length] * images, list(range(images)), "image")
    role = tokens.role.clone().view(images, length)
    row, column = (
        tokens.row.clone().view(images, length),
        tokens.column.clone().view(images, length),
    )
    place = torch.arange(down * across)
    role[:, :extra] = ROLES.index("cls")
    row[:, extra:], column[:, extra:] = place // across, place % across
    image = torch.zeros(images, length, dtype=torch.long)
    return replace(
        tokens, role=role.flatten(), row=row.flatten(), column=column.flatten(),
        image=image.flatten(), tile=image.flatten(),
    )  # fmt: skip


def whole_call(
    pattern: Tensor, tokens: TowerTokens | None = None, *, layer: int = 0, key_tower: str = ""
) -> AttentionCall:
    """A call whose pattern ``[batch head query key]`` is given; all rows of one width."""
    batch, heads, queries, keys = pattern.shape
    value = torch.ones(batch, heads, keys, 3)
    index = None if tokens is None else torch.arange(len(tokens)).view(batch, -1)
    return AttentionCall(
        Site("language" if tokens is None else tokens.tower, layer), "attn", 0, value,
        pattern @ value, AttentionMask(queries, keys), whole=pattern,
        query_index=index, key_index=index, key_tower=key_tower,
    )  # fmt: skip


def random_call(
    tokens: TowerTokens,
    *,
    heads: int = 3,
    kv_heads: int | None = None,
    causal: bool = True,
    layer: int = 0,
    seed: int = 0,
    width: int = 7,
    sharpness: float = 2.0,
) -> AttentionCall:
    """A call with random query, key and value; padding is masked by a boolean tensor.

    Values are drawn per token of the sequence, so that padding and batching change nothing.
    """
    rows = tokens.rows
    length = int(tokens.lengths[0])
    kv_heads = heads if kv_heads is None else kv_heads
    real = (tokens.role != ROLES.index("pad")).view(rows, length)
    query = torch.zeros(rows, heads, length, width)
    key, value = torch.zeros(rows, kv_heads, length, width), torch.zeros(rows, kv_heads, length, 5)
    for row in range(rows):
        example = int(tokens.example.view(rows, length)[row, 0])
        draw = torch.Generator().manual_seed(1000 * seed + example)
        count = int(real[row].sum())
        query[row, :, real[row]] = torch.randn(heads, count, width, generator=draw) * sharpness
        key[row, :, real[row]] = torch.randn(kv_heads, count, width, generator=draw)
        value[row, :, real[row]] = torch.randn(kv_heads, count, 5, generator=draw)
    mask = AttentionMask(length, length, causal=causal)
    if not bool(real.all()):
        allowed = real[:, None, None, :].expand(rows, 1, length, length)
        mask = AttentionMask(length, length, tensor=allowed.tril() if causal else allowed)
    call = AttentionCall(
        Site(tokens.tower, layer), "attn", 0, value, torch.zeros(rows, heads, length, 5), mask,
        query=query, key=key, scale=width**-0.5,
        query_index=torch.arange(len(tokens)).view(rows, length),
        key_index=torch.arange(len(tokens)).view(rows, length),
    )  # fmt: skip
    call.z = call.weighted_values()
    return call


def packed_call(
    lengths: tuple[int, int], *, heads: int = 3, causal: bool = True
) -> tuple[AttentionCall, TowerTokens]:
    """Texts of two examples packed in one row, as without padding; neither sees the other."""
    first, second = lengths
    width = max(lengths)
    tokens = text_tokens([list(range(length)) for length in lengths], width=width)
    keep = torch.cat([torch.arange(first), torch.arange(width, width + second)])
    columns = {
        name: getattr(tokens, name)[keep]
        for name in ("role", "ids", "image", "tile", "row", "column", "box")
    }
    example = torch.tensor([0] * first + [1] * second)
    starts = torch.tensor([0, first, first + second])
    packed = TowerTokens(tower="language", starts=starts, example=example, **columns)
    one_row = replace(packed, starts=torch.tensor([0, first + second]))
    base = random_call(one_row, heads=heads, causal=False)
    allowed = example[:, None] == example
    index = torch.arange(first + second)[None]
    mask = replace(base.mask, tensor=allowed.tril() if causal else allowed)
    return replace(base, mask=mask, query_index=index, key_index=index), packed


def scored(
    calls: AttentionCall | list[AttentionCall],
    tokens: TowerTokens | list[TowerTokens] | None,
    *,
    measures: str | list[str] = "all",
    examples: int | None = None,
    rows: int | None = None,
    matrix: Tensor | None = None,
) -> BatchScores:
    """The scores of a batch with these calls."""
    towers = [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
    found = TokenMap({tower.tower: tower for tower in towers}) if towers else None
    if examples is None:
        examples = 1 if not towers else int(max(int(tower.example.max()) for tower in towers)) + 1
    engine = Engine(Anatomy(matrix), select_measures(measures), tile_rows=rows)
    engine.start_batch(found, examples)
    for call in calls if isinstance(calls, list) else [calls]:
        engine.listener(call)
    return engine.finish_batch()


def value(
    scores: BatchScores, measure: str, variant: str = "", head: int = 0, layer: int = 0
) -> float:
    """The value over all examples of one column."""
    return float(scores.values[_column(scores, measure, variant, head, layer)])


def null(
    scores: BatchScores, measure: str, variant: str = "", head: int = 0, layer: int = 0
) -> float:
    """The null over all examples of one column."""
    return float(scores.null_values[_column(scores, measure, variant, head, layer)])


def _column(scores: BatchScores, measure: str, variant: str, head: int, layer: int) -> int:
    for index, column in enumerate(scores.columns):
        if (column.measure, column.variant, column.head, column.layer) == (
            measure, variant, head, layer,
        ):  # fmt: skip
            return index
    known = sorted({(c.measure, c.variant) for c in scores.columns})
    raise KeyError(f"{measure} {variant!r} H{head} L{layer} is not among {known}")


def as_dict(scores: BatchScores) -> dict[tuple, tuple[float, float]]:
    """Column (tower, layer, head, measure, variant) -> value and null."""
    return {
        (c.tower, c.layer, c.head, c.measure, c.variant): (float(v), float(n))
        for c, v, n in zip(scores.columns, scores.values, scores.null_values, strict=True)
    }


def furthest(left: BatchScores, right: BatchScores) -> tuple[float, object]:
    """The largest difference relative to max(|value|, 1) between equal columns, and its column."""
    a, b = as_dict(left), as_dict(right)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    worst: tuple[float, object] = (0.0, None)
    for column, pair in a.items():
        for x, y in zip(pair, b[column], strict=True):
            far = abs(x - y) / max(abs(x), 1.0)
            if far > worst[0] or (far != far and x == x):
                worst = (far, column)
    return worst
