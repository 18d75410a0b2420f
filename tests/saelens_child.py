"""Run by SAELens' own interpreter: it reads our folders and writes folders of its own.

FOLDER/ours/NAME         folders that we wrote; read with ``SAE.load_from_disk``
FOLDER/rows.safetensors  ``z [row, head, head_width]``
FOLDER/said/NAME.safetensors    what SAELens makes of them: strengths and reconstructions
FOLDER/theirs/NAME       folders that SAELens wrote; ``said/NAME.safetensors`` for them too
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1])
Z = load_file(FOLDER / "rows.safetensors")["z"]
SIZES = {"d_in": Z[0].numel(), "d_sae": 11}
FACTOR = 2.5
TRAININGS = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig, {}),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, {}),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 3}),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {}),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 2.5}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 3, "matryoshka_widths": [2, 5]},
    ),
}


def say(name: str, folder: Path) -> None:
    sae = SAE.load_from_disk(folder)
    z = Z if sae.cfg.reshape_activations == "hook_z" else Z.flatten(1)
    strengths = sae.encode(z)
    made = sae(z)
    assert made.shape == z.shape
    said = {"strengths": strengths.detach(), "reconstruction": made.detach().flatten(1)}
    save_file({n: v.contiguous() for n, v in said.items()}, FOLDER / "said" / f"{name}.safetensors")


def main() -> None:
    (FOLDER / "said").mkdir()
    for folder in sorted((FOLDER / "ours").iterdir()):
        say(folder.name, folder)
    generator = torch.Generator().manual_seed(5)
    for name, (kind, config, options) in TRAININGS.items():
        for way in ("plain", "scaled"):
            norm = "none" if way == "plain" else "expected_average_only_in"
            settings = config(**SIZES, **options, normalize_activations=norm)
            settings.metadata.hook_name = "blocks.5.attn.hook_z"
            settings.metadata.model_name = "gpt2-small"
            settings.reshape_activations = "hook_z"
            sae = kind(settings)
            with torch.no_grad():
                for tensor in sae.state_dict().values():
                    drawn = torch.randn(tensor.shape, generator=generator)
                    tensor.copy_(0.6 * drawn if tensor.ndim == 2 else 0.3 * drawn.abs())
            sae.save_model(FOLDER / "theirs" / f"{name}_{way}_checkpoint")
            done = copy.deepcopy(sae)
            if way == "scaled":
                scaler = FOLDER / "theirs" / f"{name}_{way}_checkpoint" / "activation_scaler.json"
                scaler.write_text(json.dumps({"scaling_factor": FACTOR, "has_whitening": False}))
                done.fold_activation_norm_scaling_factor(FACTOR)
            folder = FOLDER / "theirs" / f"{name}_{way}_done"
            done.save_inference_model(folder)
            say(folder.name, folder)


if __name__ == "__main__":
    main()
