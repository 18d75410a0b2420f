"""Several changes of one layer in one run: copies of the batch, one after the other in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probes.inputs import Batch
from probes.replaying.player import Player
from probes.replaying.proof import Verdict, tolerance_of
from probes.replaying.restart import Restart
from probes.replaying.returned import differing, pairs, repeated, rowwise
from probes.replaying.savings import ReadRows
from probes.replaying.z_change import Change
from probes.tokens.map import TokenMap


def run_folded(
    player: Player,
    restart: Restart,
    z: Tensor,
    variants: Sequence[Change],
    output: Any,
    rows: ReadRows | None,
) -> Any:
    """The output for copies of the batch, one for each variant; None in it for what is no row.

    Args:
        z: of the intact model, at the layer that is changed.
        output: of the intact model, for the batch itself.
    """
    read, copies = restart.call.read, len(variants)
    assert read is not None
    x = torch.cat([change.of(z).reshape(read.shape) for change in variants])
    special = {} if rows is None else rows.actions(player.tree)
    few = rows if restart.call in special else None
    special |= restart.actions(x, repeated(read, copies), few)
    made = player.play(special, restart.cut, None, _copied(player.batch, copies))
    return rowwise(made, output, copies)


def fold_proof(fold: Callable[[Sequence[Change]], Any], intact: Change, output: Any) -> Verdict:
    """Whether two intact copies of the batch give the output twice.

    Args:
        fold: gives the output of copies with these changes.
        output: of the intact model, for the batch itself.
    """
    try:
        made = fold([intact, intact])
    except Exception as error:  # any class of model may fail in its own way
        return f"Copies of the batch fail ({type(error).__name__}: {error})."
    compared = list(pairs(made, output))
    if not compared:
        return "No output has a row for each example of the batch."
    for two, one in compared:
        problem = differing(two, torch.cat([one, one]), tolerance_of(one))
        if problem:
            return f"Copies of the batch give something else ({problem})."
    return True


def _copied(batch: Batch, copies: int) -> Batch:
    tensors = {name: _repeated(name, value, copies) for name, value in batch.tensors.items()}
    return replace(batch, tensors=tensors, tokens=TokenMap({}), examples=batch.examples * copies)


def _repeated(name: str, value: Any, copies: int) -> Any:
    if isinstance(value, Tensor):
        # Positions by time, row and column: [3, batch, position].
        return repeated(value, copies, axis=1 if name == "position_ids" and value.ndim == 3 else 0)
    return value * copies if isinstance(value, list | tuple) else value
