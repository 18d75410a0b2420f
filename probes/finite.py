"""Weights that are NaN or infinite, found by one cheap pass over the parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from probes.layout import Tower
from probes.load_error import LoadError


def find_nonfinite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or an infinity, in the model's order."""
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point() or "mask" in name.rsplit(".", 1)[-1]:
            continue
        values = tensor.detach()
        # A sum of finite numbers may overflow, so it only says where to look closely.
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not values.isfinite().all():
            found.append(name)
    return found


def refuse_nonfinite(model: nn.Module, name: str, towers: Mapping[str, Tower]) -> None:
    """Nothing, if all weights are finite.

    Raises:
        LoadError: naming the first bad weight, and its tower and layer where it is in one.
    """
    found = find_nonfinite(model)
    if not found:
        return
    place = place_of(found[0], towers)
    where = f" in {place}" if place else ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise LoadError(
        f"The weights of {name!r} hold NaN or infinity{where}: {found[0]}{more}. "
        "Download or train the model again; in float16, try bfloat16."
    )


def place_of(parameter: str, towers: Mapping[str, Tower]) -> str:
    """``language layer 3`` for a parameter of that block; empty outside the blocks.

    Without a tower that fits, the path itself tells: ``layer 3 of model.layers``.
    """
    for tower in towers.values():
        block = tower.template.rpartition("*")[0] + "*" if "*" in tower.template else ""
        if not block:
            continue
        match = re.match(re.escape(block).replace(r"\*", r"(\d+)") + r"(?:\.|$)", parameter)
        if match:
            return f"{tower.name} layer {match[match.lastindex or 0]}"
    numbered = re.match(r"(.+?)\.(\d+)\.", parameter)
    return f"layer {numbered[2]} of {numbered[1]}" if numbered else ""
