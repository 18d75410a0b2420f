"""Names in folders of SAELens, and ours for the same things."""

from __future__ import annotations

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
SCALER = "activation_scaler.json"

VERSION = "6.54.12"
"""Of SAELens, whose layout is written."""
RECORD = "headscope"
"""The entry of ``metadata`` that holds what we know of a coder, as our own folders do."""

KINDS = {"standard": "standard", "topk": "topk", "jumprelu": "jump_relu", "gated": "gated"}
"""Their architectures that we write and read, with our names."""
TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
"""In checkpoints of trainings; SAELens itself hands them on as ``jumprelu``."""

_LINEAR = {"W_enc": "encoder", "W_dec": "decoder", "b_dec": "decoder_bias"}
_PLAIN = {**_LINEAR, "b_enc": "encoder_bias"}
NAMES = {
    "standard": _PLAIN,
    "topk": _PLAIN,
    "jumprelu": {**_PLAIN, "threshold": "threshold"},
    "gated": {
        **_LINEAR,
        "b_gate": "encoder_bias",
        "b_mag": "magnitude_bias",
        "r_mag": "magnitude_log_scale",
    },
}
"""Their tensors by architecture, with our names; ``W_enc`` alone has a column per latent."""
