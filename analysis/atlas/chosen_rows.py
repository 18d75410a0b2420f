"""The pattern of chosen heads on chosen rows of a call's batch axis, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from probes.attention_call import AttentionCall
from probes.masks import AttentionMask


def chosen_tiles(
    call: AttentionCall, wanted: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, slice, Tensor]]:
    """Float32 ``[head row key]`` of the wanted heads, with its batch row and query rows.

    Nothing else of the call is computed, unless edits change it: these see whole tiles. Keys start
    at 0 and stop where no row of the tile may read on.

    Args:
        wanted: row of the batch axis -> heads.
    """
    if call.score_edits or call.pattern_edits:
        for tile in call.tiles():
            for row, heads in wanted.items():
                if tile.batch.start <= row < tile.batch.stop:
                    yield row, tile.rows, tile.pattern[row - tile.batch.start, list(heads)]
        return
    for row, heads in wanted.items():
        narrow = _narrowed(call, row, list(heads))
        for tile in narrow.tiles():
            pattern = tile.pattern[0]
            yield row, tile.rows, pattern if call.whole is None else pattern[list(heads)]


def _narrowed(call: AttentionCall, row: int, heads: list[int]) -> AttentionCall:
    """One row of a call, and some of its heads; of a pattern that is there anyway, all of them."""
    only = slice(row, row + 1)
    if call.whole is not None:
        mask = AttentionMask(call.queries, call.keys)  # what may not be read has no weight there
        return replace(
            call, whole=call.whole[only], value=call.value[only], z=call.z[only], mask=mask
        )
    assert call.query is not None and call.key is not None
    serving = [head * call.kv_heads // call.heads for head in heads]
    return replace(
        call, query=call.query[only, heads], key=call.key[only, serving],
        value=call.value[only, serving], z=call.z[only, heads],
        mask=_narrowed_mask(call.mask, row, heads),
    )  # fmt: skip


def _narrowed_mask(mask: AttentionMask, row: int, heads: list[int]) -> AttentionMask:
    tensor = mask.tensor
    if tensor is not None:
        if tensor.ndim == 4 and tensor.shape[0] > 1:
            tensor = tensor[row : row + 1]
        if tensor.ndim >= 3 and tensor.shape[-3] > 1:
            tensor = tensor[..., heads, :, :]
    return AttentionMask(mask.queries, mask.keys, causal=mask.causal, tensor=tensor)
