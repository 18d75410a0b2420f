"""Folders of EleutherAI's sparsify: `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch

from sae.coders.coder import Coder
from sae.coders.topk import TopK
from sae.exchange.assembled import assembled, require_names
from sae.exchange.json_object import read_object, true_or_false, whole_number
from sae.exchange.orientation import Layout, by_latent
from sae.exchange.refusals import CoderFolderError
from sae.exchange.tensor_file import TensorFileError, read_tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_MATRICES: dict[str, Layout] = {"encoder.weight": "latent width", "W_dec": "latent width"}
_NAMES = {
    "encoder.weight": "encoder",
    "encoder.bias": "encoder_bias",
    "W_dec": "decoder",
    "b_dec": "decoder_bias",
}
_OTHER_MODELS = {
    "transcode": "predicts one module's output from its input",
    "skip_connection": "adds a linear map of its input",
    "signed": "keeps the largest strengths of either sign",
}


def read_sparsify(
    folder: str | Path, device: str | torch.device = "cpu", *, trust_layout: bool = False
) -> Coder:
    """The TopK coder of one hookpoint, as sparsify 1.3 and before write it.

    sparsify reads what modules put out, so that its coders belong to none of our sites;
    `Coder.about` names the hookpoint, which is the folder's name. A coder reconstructs from ``k``
    latents, as sparsify's ``encode`` and ``decode`` do; its ``forward`` takes 4 k where
    ``multi_topk`` is on.

    Args:
        trust_layout: read matrices with as many latents as the width as the format documents.

    Raises:
        CoderFolderError: a file is missing or damaged, tensors are missing, unknown or of wrong
            shapes, or it is a transcoder or one with another activation function.
    """
    folder = Path(folder).expanduser()
    path = folder / CONFIG
    config = read_object(path)
    for name, what in _OTHER_MODELS.items():
        if true_or_false(config, name, False, path):
            raise CoderFolderError(
                f"`{name}` in {path} must be false, got true: this one {what}, as no coder of "
                "headscope does. Use sparsify for it."
            )
    if config.get("activation", "topk") != "topk":
        raise CoderFolderError(
            f"`activation` in {path} must be topk, got {config['activation']!r}. Use sparsify for "
            "this one."
        )
    width = whole_number(config, "d_in", path)
    where = str(folder / WEIGHTS)
    try:
        tensors, _ = read_tensors(folder / WEIGHTS)
    except TensorFileError as error:
        raise CoderFolderError(f"{error} Take another copy of the folder.") from error
    require_names(tensors, _NAMES, where)
    for name, layout in _MATRICES.items():
        tensors[name] = by_latent(
            tensors[name], width, layout, f"`{name}` in {where}", trust_layout=trust_layout
        )
    coder = assembled(
        TopK,
        {ours: tensors[theirs] for theirs, ours in _NAMES.items()},
        where,
        centred=True,
        k=whole_number(config, "k", path),
    )
    hookpoint = folder.resolve().name
    coder.about = {"exchange": {"format": "sparsify", "hookpoint": hookpoint, "config": config}}
    return coder.to(device)
