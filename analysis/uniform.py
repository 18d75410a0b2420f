"""The null of pattern measures: one virtual head that looks at all allowed keys alike."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.call_view import CallView
from probes.attention_call import TILE_ELEMENTS, AttentionCall, Tile


def uniform_tiles(call: AttentionCall, view: CallView) -> Iterator[Tile]:
    """Tiles ``[batch 1 row key]`` of the uniform pattern over the allowed keys of a call.

    A key counts as allowed if some head may read it. On the way the tiles fill the plan's counts
    of keys per query and of queries per key.
    """
    kind = "cuda" if call.device.type == "cuda" else "cpu"
    rows = max(16, TILE_ELEMENTS[kind] // max(call.batch * call.keys, 1))
    everything = slice(0, call.batch)
    for start in range(0, call.queries, rows):
        part = slice(start, min(start + rows, call.queries))
        keys = view.plan.mask.key_end(part)
        allowed = view.plan.may_read(part, keys)
        counts = allowed.sum(-1)
        view.read_counts[:, part] = counts.double()
        used = view.plan.used[:, part] & (counts > 0)
        view.plan.used[:, part] = used
        view.reader_counts[:, :keys] += (allowed & used[..., None]).sum(1).double()
        pattern = allowed.float() / counts.clamp_min(1)[..., None]
        yield Tile(call, everything, part, pattern[:, None])
