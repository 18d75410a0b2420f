"""Find the outputs of a linear map in a tensor that is cut into heads, number by number.

No layout is assumed. A head's number, over all tokens of a sample, is a list of floats that no
other output of the map has: wherever the model has put it, it is found again exactly, whether
query, key and value are fused, interleaved head by head, grouped or apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from probes.weights.linear_runs import LinearRun, Moved

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2


class NotFound(Exception):
    """The numbers are not those of the map; the reason is the text, without a full stop."""


def cut_into_heads(tensor: Tensor, heads: Iterable[int], width: int) -> Iterator[Tensor]:
    """``[head row width]``: every way to read a tensor's axes so that heads and width fit.

    Rows are all other axes. Two axes may have the same size by chance, so there may be several
    ways; only one holds a map's outputs as columns.
    """
    for count in dict.fromkeys(heads):
        for across in reversed(range(tensor.ndim)):
            if tensor.shape[across] != width:
                continue
            for axis in reversed(range(tensor.ndim)):
                size = tensor.shape[axis]
                if axis == across or size % count:
                    continue
                moved = tensor.movedim((axis, across), (0, -1))
                # More than heads: batch and heads in one axis, the batch first.
                folded = moved.reshape(size // count, count, -1, width)
                if size == count or tensor.ndim == 3:
                    yield folded.transpose(0, 1).reshape(count, -1, width)


def match_columns(moved: Moved, heads: Tensor) -> tuple[LinearRun, Tensor]:
    """The linear map whose outputs ``[head row width]`` are, and long ``[head width]`` which.

    Rows may stand in another order than those of the map (windows, the sequence first).

    Raises:
        NotFound: not all of them are outputs of one map, two outputs cannot be told apart, or the
            map is not linear.
    """
    reason = "no linear map was seen to make it"
    for run in moved.runs:
        try:
            columns = _columns_of(run, moved.scalings, heads)
        except NotFound as problem:
            reason = str(problem)
            continue
        error = map_error(run, columns)
        if not error <= _TOLERANCE.get(run.written.dtype, _HALF_TOLERANCE):
            raise NotFound(f"{run.source.path} is not a plain linear map ({error:.1e} off)")
        return run, columns
    raise NotFound(reason)


def map_error(run: LinearRun, columns: Tensor) -> float:
    """Largest ``|x W + b - output|`` at some outputs, in units of the largest of them."""
    places = columns.flatten()
    read = run.read.reshape(-1, run.source.width).float()
    expected = read @ run.source.matrix(places) + run.source.offset(places)
    actual = run.product.reshape(-1, run.product.shape[-1])[:, places].float()
    return float((expected - actual).abs().amax() / actual.abs().amax().clamp_min(1e-12))


def _columns_of(run: LinearRun, scalings: tuple[tuple[str, float], ...], heads: Tensor) -> Tensor:
    written = run.written.reshape(-1, run.written.shape[-1])
    for operation, number in scalings:
        written = written / number if operation == "div" else written * number
    count, rows, width = heads.shape
    if written.shape[0] != rows:
        raise NotFound(
            f"{run.source.path} gave {written.shape[0]} rows and the attention reads {rows}"
        )
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(_keys(written.to(heads.dtype).T)):
        places.setdefault(key, []).append(place)
    found = []
    for key in _keys(heads.transpose(1, 2).flatten(0, 1)):
        candidates = places.get(key)
        if candidates is None:
            raise NotFound(f"its numbers are not those that {run.source.path} gave out")
        if len(candidates) > 1:
            _refuse_different(run, candidates)
        found.append(candidates[0])
    return torch.tensor(found, device=heads.device).reshape(count, width)


def _keys(columns: Tensor) -> list[bytes]:
    """The values of each column ``[column row]``, in order of size."""
    # Adding 0 makes -0 the same as 0.
    ordered = (columns.double() + 0.0).sort(dim=1).values.cpu().contiguous().numpy()
    return [row.tobytes() for row in ordered]


def _refuse_different(run: LinearRun, places: list[int]) -> None:
    chosen = torch.tensor(places, device=run.written.device)
    matrix, bias = run.source.matrix(chosen), run.source.offset(chosen)
    if bool((matrix != matrix[:, :1]).any()) or bool((bias != bias[0]).any()):
        raise NotFound(
            f"{len(places)} outputs of {run.source.path} cannot be told apart on this sample"
        )


def same_norms(turned: Tensor, before: Tensor) -> float | None:
    """The one factor between the lengths of all vectors ``[head row width]``, or None.

    A rotation by position keeps the length of every query and key (YaRN and kin: up to one
    factor). Rows may be in another order, and ``turned`` may hold some of them only (windows).
    """
    if turned.shape[::2] != before.shape[::2] or turned.shape[1] > before.shape[1]:
        return None
    after = turned.float().norm(dim=-1).sort(dim=1).values
    own = before.float().norm(dim=-1).sort(dim=1).values
    factor = 1.0
    if after.shape == own.shape:
        factor = float(after.sum() / own.sum().clamp_min(1e-12))
    return factor if _apart(after, factor * own) <= _limit(turned) * float(after.amax()) else None


def same_products(
    turned: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor], factor: float
) -> bool:
    """Whether query times key at the same place is what it was before they were turned.

    All ``[head row width]``, rows of a query and its key in the same order.
    """
    if turned[0].shape != turned[1].shape or before[0].shape != before[1].shape:
        return False
    after = (turned[0].float() * turned[1].float()).sum(-1).sort(dim=1).values
    own = (before[0].float() * before[1].float()).sum(-1).sort(dim=1).values
    if after.shape[0] != own.shape[0] or after.shape[1] > own.shape[1]:
        return False
    lengths = turned[0].float().norm(dim=-1).amax() * turned[1].float().norm(dim=-1).amax()
    return _apart(after, factor * own) <= _limit(turned[0]) * float(lengths)


def shifted(changed: Tensor, before: Tensor) -> tuple[float, Tensor] | None:
    """``(s, u)`` with ``changed = s * (before + u)`` for all rows, or None.

    Args:
        changed, before: ``[head row width]``, rows in the same order.

    Returns:
        The factor and float32 ``u [head width]``: a learned bias that was added after the map.
    """
    if changed.shape != before.shape or changed.shape[1] < 2:
        return None
    after, own = changed.float(), before.float()
    after_steps, own_steps = after - after[:, :1], own - own[:, :1]
    factor = float((after_steps * own_steps).sum() / own_steps.square().sum().clamp_min(1e-12))
    error = (after_steps - factor * own_steps).abs().amax()
    if not factor or float(error) > _limit(changed) * float(after.abs().amax()):
        return None
    return factor, (after / factor - own).mean(1)


def _apart(some: Tensor, among: Tensor) -> float:
    """Largest distance of a sorted value ``[head row]`` to its like, or to the nearest."""
    if some.shape == among.shape:
        return float((some - among).abs().amax())
    behind = torch.searchsorted(among.contiguous(), some.contiguous())
    near = [
        (among.gather(1, (behind - step).clamp(0, among.shape[1] - 1)) - some).abs()
        for step in (0, 1)
    ]
    return float(torch.minimum(*near).amax())


def _limit(tensor: Tensor) -> float:
    return _TOLERANCE.get(tensor.dtype, _HALF_TOLERANCE)
