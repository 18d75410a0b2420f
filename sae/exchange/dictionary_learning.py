"""Folders of dictionary_learning: `ae.pt` and `config.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Coder
from sae.coders.gated import Gated
from sae.coders.jump_relu import JumpReLU
from sae.coders.matryoshka import Matryoshka
from sae.coders.standard import Standard
from sae.coders.topk import TopK
from sae.exchange.assembled import assembled, require_names
from sae.exchange.json_object import read_object, whole_number
from sae.exchange.orientation import Layout, by_latent
from sae.exchange.refusals import CoderFolderError

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LAYOUTS: dict[str, Layout] = {
    "encoder.weight": "latent width",
    "decoder.weight": "width latent",
    "W_enc": "width latent",
    "W_dec": "latent width",
}
_LINEAR = {
    "encoder.weight": "encoder",
    "encoder.bias": "encoder_bias",
    "decoder.weight": "decoder",
}
_PLAIN = {
    "W_enc": "encoder",
    "b_enc": "encoder_bias",
    "W_dec": "decoder",
    "b_dec": "decoder_bias",
}


@dataclass(frozen=True)
class _Class:
    kind: type[Coder]
    names: dict[str, str]
    centred: bool = True
    unused: frozenset[str] = frozenset()


_CLASSES = {
    "AutoEncoder": _Class(Standard, {**_LINEAR, "bias": "decoder_bias"}),
    "AutoEncoderNew": _Class(Standard, {**_LINEAR, "decoder.bias": "decoder_bias"}, False),
    "GatedAutoEncoder": _Class(
        Gated,
        {
            "encoder.weight": "encoder",
            "gate_bias": "encoder_bias",
            "mag_bias": "magnitude_bias",
            "r_mag": "magnitude_log_scale",
            "decoder.weight": "decoder",
            "decoder_bias": "decoder_bias",
        },
    ),
    "JumpReluAutoEncoder": _Class(JumpReLU, {**_PLAIN, "threshold": "threshold"}, False),
    # Its threshold is for a way of encoding that is off by default.
    "AutoEncoderTopK": _Class(
        TopK, {**_LINEAR, "b_dec": "decoder_bias"}, unused=frozenset({"k", "threshold"})
    ),
    "BatchTopKSAE": _Class(
        BatchTopK,
        {**_LINEAR, "b_dec": "decoder_bias", "threshold": "threshold"},
        unused=frozenset({"k"}),
    ),
    "MatryoshkaBatchTopKSAE": _Class(
        Matryoshka, {**_PLAIN, "threshold": "threshold"}, unused=frozenset({"k", "group_sizes"})
    ),
}
_ASKED_FOR = re.compile(r"GLOBAL (\S+)")


def read_dictionary_learning(
    folder: str | Path, device: str | torch.device = "cpu", *, trust_layout: bool = False
) -> Coder:
    """The coder in a folder of dictionary_learning, a backup of an unfinished training too.

    `ae.pt` is a pickle; it is read as tensors only, so that nothing in it is run. Finished
    coders and checkpoints are in units of the model already; a backup is not, and is put there
    by the norm factor beside it. Decoder rows stay as long as they are.

    Args:
        trust_layout: read matrices with as many latents as the width as the format documents.

    Raises:
        CoderFolderError: a file is missing or damaged or holds more than tensors, tensors are
            missing, unknown or of wrong shapes, or it is a class that no kind of ours computes.
    """
    folder = Path(folder).expanduser()
    path, where = folder / CONFIG, str(folder / WEIGHTS)
    config = read_object(path)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise CoderFolderError(
            f"`trainer` in {path} must be an object, got {trainer!r}. Take another copy of it."
        )
    name = trainer.get("dict_class")
    if not isinstance(name, str) or name not in _CLASSES:
        raise CoderFolderError(
            f"`dict_class` in {path} must be one of {', '.join(_CLASSES)}, got {name!r}. Use "
            "dictionary_learning for this one."
        )
    written = _CLASSES[name]
    tensors, norm_factor = _state(folder / WEIGHTS)
    require_names(tensors, written.names, where, written.unused)
    width = whole_number(trainer, "activation_dim", path)
    for matrix in _LAYOUTS.keys() & written.names.keys():
        tensors[matrix] = by_latent(
            tensors[matrix],
            width,
            _LAYOUTS[matrix],
            f"`{matrix}` in {where}",
            trust_layout=trust_layout,
        )
    coder = assembled(
        written.kind,
        {ours: tensors[theirs] for theirs, ours in written.names.items()},
        where,
        centred=written.centred,
        **_settings(written.kind, tensors, trainer, path),
    )
    coder.rescale(norm_factor)
    coder.about = {"exchange": {"format": "dictionary_learning", "config": config}}
    if isinstance(trainer.get("lm_name"), str):
        coder.about["subject"] = {"name": trainer["lm_name"]}
    return coder.to(device)


def _state(path: Path) -> tuple[dict[str, Tensor], float]:
    """The tensors and what rows were divided by, 1 where they are in units of the model."""
    if not path.is_file():
        raise CoderFolderError(f"{path} is missing. Take another copy of the folder.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle raises anything.
    except Exception as error:
        asked = _ASKED_FOR.search(str(error))
        if asked is not None:
            raise CoderFolderError(
                f"{path} must hold tensors alone, it asks for {asked[1]} to be run when it is "
                "read, which is refused. Ask its author for a state dict."
            ) from error
        raise CoderFolderError(f"{path} is damaged. Take another copy of it.") from error
    factor = 1.0
    if isinstance(found, dict) and isinstance(found.get("ae"), dict):
        factor = found.get("norm_factor", 1.0)
        if not isinstance(factor, (int, float)) or not factor > 0:
            raise CoderFolderError(
                f"`norm_factor` in {path} must be a number above 0, got {factor!r}. Take another "
                "copy of it."
            )
        found = found["ae"]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CoderFolderError(f"{path} must hold tensors by name. Take another copy of it.")
    return dict(found), float(factor)


def _settings(
    kind: type[Coder], tensors: dict[str, Tensor], trainer: dict[str, Any], path: Path
) -> dict[str, Any]:
    if not issubclass(kind, TopK):
        return {}
    # The file's own goes first: it may have been lowered while training.
    own = tensors.get("k")
    if own is not None and own.numel() != 1:
        raise CoderFolderError(
            f"`k` in {path.with_name(WEIGHTS)} must be one whole number, got {list(own.shape)}. "
            "Take another copy of the folder."
        )
    k = whole_number(trainer, "k", path) if own is None else int(own)
    if not issubclass(kind, Matryoshka):
        return {"k": k}
    sizes = tensors.get("group_sizes")
    if sizes is None or sizes.ndim != 1:
        raise CoderFolderError(
            f"`group_sizes` in {path.with_name(WEIGHTS)} must be sizes of groups, got "
            f"{None if sizes is None else list(sizes.shape)}. Take another copy of the folder."
        )
    total = float(sizes.sum())
    return {"k": k, "group_shares": [float(size) / total for size in sizes]}
