"""Reading a coder that SAELens, or we for it, have written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.jump_relu import JumpReLU
from sae.coders.registry import CODERS
from sae.exchange.assembled import assembled, require_names
from sae.exchange.json_object import read_object
from sae.exchange.orientation import Layout, by_latent
from sae.exchange.refusals import CoderFolderError, require_heads
from sae.exchange.saelens.config import SaeLensConfig, read_config
from sae.exchange.saelens.layout import (
    CONFIG,
    KINDS,
    NAMES,
    RECORD,
    SCALER,
    TRAINING_ONLY,
    WEIGHTS,
)
from sae.exchange.tensor_file import TensorFileError, read_tensors

_HOOK = re.compile(r"^blocks\.(?P<layer>\d+)\.attn\.hook_z$", re.ASCII)
_LAYOUTS: dict[str, Layout] = {"W_enc": "width latent", "W_dec": "latent width"}
_SHORTEST_ROW = 1e-8


def read_saelens(
    folder: str | Path, device: str | torch.device = "cpu", *, trust_layout: bool = False
) -> Coder:
    """The coder in a folder of SAELens, of version 6 or before, a checkpoint of a training too.

    What the folder keeps beside the weights is put into them, as SAELens does: the factor that
    rows were scaled by, and the lengths of decoder rows where TopK compares by them. BatchTopK
    and Matryoshka come as JumpReLU, which SAELens makes of them. `Coder.about` is what we wrote;
    else the site where the hook is one, the model's name, and the entries of the file.

    Args:
        trust_layout: read matrices with as many latents as the width as the format documents.

    Raises:
        CoderFolderError: a file is missing or damaged, tensors are missing, unknown or of wrong
            shapes, or the coder computes something that no kind of ours does.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder / CONFIG)
    where = str(folder / WEIGHTS)
    architecture = "jumprelu" if config.architecture in TRAINING_ONLY else config.architecture
    record = config.facts.get(RECORD)
    # A square matrix that we wrote is no riddle.
    trust_layout = trust_layout or isinstance(record, dict)
    tensors = _tensors(folder, config)
    for name, layout in _LAYOUTS.items():
        tensors[name] = by_latent(
            tensors[name], config.width, layout, f"`{name}` in {where}", trust_layout=trust_layout
        )
    settings = _settings(record, KINDS[architecture])
    coder = assembled(
        CODERS[KINDS[architecture]],
        {ours: tensors[theirs] for theirs, ours in NAMES[architecture].items()},
        where,
        centred=config.centred,
        **(settings if config.k is None else {**settings, "k": config.k}),
    )
    _fold(coder, config, folder)
    coder.about = _about(config, record)
    require_heads(coder.about, coder.width, str(folder / CONFIG))
    return coder.to(device)


def _tensors(folder: Path, config: SaeLensConfig) -> dict[str, Tensor]:
    """By the names of an inference file, whichever the folder has."""
    path = folder / WEIGHTS
    try:
        tensors, _ = read_tensors(path)
    except TensorFileError as error:
        raise CoderFolderError(f"{error} Take another copy of the folder.") from error
    # Of SAELens 3 to 5: from fine-tuning strengths, and all ones without it.
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        raise CoderFolderError(
            f"`scaling_factor` in {path} must be all ones, got others. Multiply `W_dec` by it, "
            "row by row, and take it away."
        )
    if config.architecture in TRAINING_ONLY:
        require_names(tensors, {*NAMES["standard"], "topk_threshold"}, str(path))
        threshold = tensors.pop("topk_threshold").reshape(-1)
        latents = tensors["b_enc"].numel()
        tensors["threshold"] = threshold.repeat(latents) if threshold.numel() == 1 else threshold
        return tensors
    if config.architecture == "jumprelu" and "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").float().exp()
    require_names(tensors, NAMES[config.architecture], str(path))
    return tensors


@torch.no_grad()
def _fold(coder: Coder, config: SaeLensConfig, folder: Path) -> None:
    """Put into the parameters what SAELens does to rows and strengths around them."""
    factor = _row_factor(folder) if config.scaled else 1.0
    if factor != 1.0:
        coder.rescale(1 / factor)
        coder.scale_strengths(coder.encoder_bias.new_full((coder.latents,), factor))
    if config.compares_norms:
        lengths = coder.decoder.norm(dim=1).clamp_min(_SHORTEST_ROW)
        # A threshold is in these units already, but for the factor.
        threshold = coder.threshold / factor if isinstance(coder, JumpReLU) else None
        # Of the base: TopK's own refuses other units, which choose other latents, those that are
        # meant here.
        Coder.scale_strengths(coder, lengths)
        if isinstance(coder, JumpReLU) and threshold is not None:
            coder.threshold.copy_(threshold)


def _row_factor(folder: Path) -> float:
    path = folder / SCALER
    if not path.exists():
        raise CoderFolderError(
            f"`normalize_activations` in {folder / CONFIG} must be none where the factor of the "
            f"rows is not told in {SCALER}, got expected_average_only_in. Save the coder again "
            "after `fold_activation_norm_scaling_factor`."
        )
    factor = read_object(path).get("scaling_factor")
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or factor <= 0:
        raise CoderFolderError(
            f"`scaling_factor` in {path} must be a number above 0, got {factor!r}. Take another "
            "copy of it."
        )
    return float(factor)


def _settings(record: Any, kind: str) -> dict[str, Any]:
    """How it was trained, where we know and the kind is still the same."""
    if not isinstance(record, dict) or record.get("architecture") != kind:
        return {}
    settings = record.get("settings")
    return settings if isinstance(settings, dict) else {}


def _about(config: SaeLensConfig, record: Any) -> dict[str, Any]:
    if isinstance(record, dict) and isinstance(record.get("about"), dict):
        return record["about"]
    found: dict[str, Any] = {"exchange": {"format": "saelens", "config": dict(config.entries)}}
    hook, model = config.facts.get("hook_name"), config.facts.get("model_name")
    if isinstance(hook, str) and (place := _HOOK.match(hook)):
        found["site"] = f"language.L{int(place['layer'])}"
    if isinstance(model, str):
        found["subject"] = {"name": model}
    return found
