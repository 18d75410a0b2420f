"""Speech models and other series."""

from __future__ import annotations

from typing import Any

import torch

from .family import VOCABULARY, Family, Seen, config, ids, numbers

WAVE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 60,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "conv_dim": [12, 12],
    "conv_kernel": [10, 3],
    "conv_stride": [10, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}
BOTH_SIDES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 60,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 68,
    "decoder_ffn_dim": 52,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
THREE = {"encoder": Seen(2, 6), "decoder": Seen(2, 4), "cross": Seen(2, 4)}


def wave(length: int = 700) -> dict[str, Any]:
    return {"input_values": numbers(2, length, seed=3)}


def _speech(name: str, cls: str, *kinds: str, base: Any = WAVE, **rest: Any) -> Family:
    known = ("refused", "aside", "note", "gain", "inputs", "towers", "change", "attention")
    options = {k: rest.pop(k) for k in known if k in rest}
    head = rest.pop("head", None) or f"{cls}Model"
    made = config(rest.pop("config_class", f"{cls}Config"), **(base | rest))
    return Family(
        name,
        "speech",
        made,
        head,
        **({"inputs": wave, "towers": {"audio": Seen(2, 6)}} | options),
        kinds=kinds,
    )


FAMILIES = [
    _speech("wav2vec2", "Wav2Vec2"),
    _speech("hubert", "Hubert"),
    _speech(
        "wavlm",
        "WavLM",
        "position bias",
        num_buckets=16,
        max_bucket_distance=32,
        note="its output_attentions is the mean of the heads",
    ),
    _speech("unispeech_sat", "UniSpeechSat"),
    _speech("sew", "SEW", squeeze_factor=2),
    _speech(
        "sew_d",
        "SEWD",
        "position bias",
        squeeze_factor=2,
        position_buckets=8,
        max_position_embeddings=64,
        share_att_key=True,
    ),
    _speech(
        "wav2vec2_conformer",
        "Wav2Vec2Conformer",
        "position bias",
        position_embeddings_type="relative",
    ),
    _speech(
        "whisper",
        "Whisper",
        base=BOTH_SIDES,
        head="WhisperForConditionalGeneration",
        num_mel_bins=20,
        max_source_positions=20,
        max_target_positions=32,
        inputs=lambda: {"input_features": numbers(2, 20, 40), "decoder_input_ids": ids(2, 7)},
        towers=THREE,
    ),
    _speech(
        "speech_to_text",
        "Speech2Text",
        base=BOTH_SIDES,
        head="Speech2TextForConditionalGeneration",
        input_feat_per_channel=20,
        conv_channels=24,
        max_source_positions=64,
        max_target_positions=32,
        inputs=lambda: {
            "input_features": numbers(2, 44, 20),
            "attention_mask": torch.ones(2, 44, dtype=torch.long),
            "decoder_input_ids": ids(2, 7),
        },
        towers=THREE,
    ),
    _speech(
        "moonshine",
        "Moonshine",
        "gqa",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "intermediate_size": 68,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 6,
            "decoder_num_attention_heads": 6,
            "pad_head_dim_to_multiple_of": None,
        },
        head="MoonshineForConditionalGeneration",
        inputs=lambda: {"input_values": numbers(2, 3000, seed=3), "decoder_input_ids": ids(2, 7)},
        towers={"encoder": Seen(2, 6), "decoder": Seen(2, 6), "cross": Seen(2, 6)},
    ),
    _speech(
        "audio_spectrogram_transformer",
        "AST",
        base={
            "hidden_size": 60,
            "intermediate_size": 68,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 16,
        },
        inputs=lambda: {"input_values": numbers(2, 16, 16, seed=3)},
    ),
    _speech(
        "speecht5",
        "SpeechT5",
        "position bias",
        base=WAVE
        | {
            "vocab_size": VOCABULARY,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 68,
            "decoder_ffn_dim": 52,
            "encoder_max_relative_position": 8,
        },
        head="SpeechT5ForSpeechToText",
        inputs=lambda: wave() | {"decoder_input_ids": ids(2, 7)},
        towers=THREE,
    ),
    _speech(
        "vits",
        "Vits",
        "position bias",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "flow_size": 24,
            "spectrogram_bins": 9,
            "duration_predictor_filter_channels": 16,
            "prior_encoder_num_flows": 1,
            "posterior_encoder_num_wavenet_layers": 1,
            "duration_predictor_num_flows": 1,
            "prior_encoder_num_wavenet_layers": 1,
            "upsample_initial_channel": 16,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1]],
            "use_stochastic_duration_prediction": False,
            "noise_scale": 0.0,
            "noise_scale_duration": 0.0,
            "window_size": 3,
        },
        inputs=lambda: {"input_ids": ids(2, 11)},
        gain=0.7,
        towers={"language": Seen(2, 2)},
        note="its relative positions, kept as a band, are refused; the pattern has them in it",
    ),
    _speech(
        "time_series_transformer",
        "TimeSeriesTransformer",
        base={
            "prediction_length": 3,
            "context_length": 9,
            "lags_sequence": [1, 2],
            "d_model": 60,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 68,
            "decoder_ffn_dim": 52,
            "num_time_features": 1,
        },
        inputs=lambda: {
            "past_values": numbers(2, 11).abs(),
            "past_time_features": numbers(2, 11, 1),
            "past_observed_mask": torch.ones(2, 11),
            "future_values": numbers(2, 3, seed=5).abs(),
            "future_time_features": numbers(2, 3, 1),
        },
        towers=THREE,
    ),
]
