"""Text encoders and encoder-decoders."""

from __future__ import annotations

from typing import Any

from .family import VOCABULARY, Family, Seen, config, padded_text, pair

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
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
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 60,
    "d_kv": 14,
    "d_ff": 68,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
THREE = {"encoder": Seen(2, 6), "decoder": Seen(2, 4), "cross": Seen(2, 4)}
THREE_ALIKE = {"encoder": Seen(2, 6), "decoder": Seen(2, 6), "cross": Seen(2, 6)}


def _encoder(
    name: str, cls: str, *kinds: str, base: Any = SMALL, seen: Seen | None = None, **rest: Any
) -> Family:
    options = {
        k: rest.pop(k)
        for k in ("refused", "aside", "note", "gain", "inputs", "towers", "attention")
        if k in rest
    }
    head = rest.pop("head", None) or f"{cls}Model"
    return Family(
        name,
        "encoder",
        config(f"{cls}Config", **(base | rest)),
        head,
        **({"inputs": padded_text, "towers": {"language": seen or Seen(2, 6)}} | options),
        kinds=kinds,
    )


def _both(name: str, cls: str, *kinds: str, base: Any = BOTH_SIDES, **rest: Any) -> Family:
    options = {
        k: rest.pop(k)
        for k in ("refused", "aside", "note", "gain", "inputs", "towers", "attention")
        if k in rest
    }
    head = rest.pop("head", None) or f"{cls}ForConditionalGeneration"
    towers = THREE_ALIKE if base is T5 else THREE
    return Family(
        name,
        "encoder-decoder",
        config(f"{cls}Config", **(base | rest)),
        head,
        **({"inputs": pair, "towers": towers} | options),
        kinds=kinds,
    )


FAMILIES = [
    _encoder("bert", "Bert", head="BertForMaskedLM"),
    _encoder("roberta", "Roberta", pad_token_id=1),
    _encoder("xlm_roberta", "XLMRoberta", pad_token_id=1),
    _encoder("albert", "Albert", "shared module", embedding_size=20),
    _encoder(
        "distilbert",
        "DistilBert",
        base={
            "vocab_size": VOCABULARY,
            "dim": 60,
            "hidden_dim": 68,
            "n_layers": 2,
            "n_heads": 6,
            "max_position_embeddings": 64,
        },
    ),
    _encoder("electra", "Electra", embedding_size=20),
    _encoder(
        "deberta_v2",
        "DebertaV2",
        "position bias",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=16,
    ),
    _encoder(
        "deberta",
        "Deberta",
        "position bias",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=16,
    ),
    _encoder("mpnet", "MPNet", "position bias", pad_token_id=1),
    _encoder("modernbert", "ModernBert", "window", local_attention=4, global_attn_every_n_layers=2),
    _encoder("nomic_bert", "NomicBert"),
    _encoder("esm", "Esm", pad_token_id=1, mask_token_id=3),
    _encoder("megatron_bert", "MegatronBert"),
    _encoder("rembert", "RemBert", input_embedding_size=20, output_embedding_size=20),
    _encoder("roformer", "RoFormer", embedding_size=60),
    _encoder("ibert", "IBert"),
    _encoder("luke", "Luke", entity_vocab_size=7, entity_emb_size=12),
    _encoder(
        "canine",
        "Canine",
        "local blocks",
        hidden_size=64,
        num_attention_heads=4,
        local_transformer_stride=4,
        downsampling_rate=4,
        upsampling_kernel_size=4,
        towers={
            "language": Seen(3, 4),
            "language_encoder": Seen(2, 4),
            "language_final_char_encoder": Seen(1, 4),
        },
        note="its three local blocks, one call each, show as three layers",
    ),
    _encoder(
        "xlnet",
        "XLNet",
        "position bias",
        base={"vocab_size": VOCABULARY, "d_model": 60, "n_layer": 2, "n_head": 6, "d_inner": 68},
    ),
    _encoder(
        "funnel",
        "Funnel",
        "position bias",
        "pooled queries",
        base={
            "vocab_size": VOCABULARY,
            "d_model": 60,
            "n_head": 6,
            "d_head": 10,
            "d_inner": 68,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        towers={"encoder": Seen(2, 6), "decoder": Seen(1, 6)},
    ),
    _encoder(
        "squeezebert",
        "SqueezeBert",
        embedding_size=60,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=2,
        output_groups=2,
    ),
    _encoder(
        "convbert",
        "ConvBert",
        "dynamic convolution",
        embedding_size=60,
        head_ratio=2,
        conv_kernel_size=3,
        num_groups=1,
        seen=Seen(2, 3),
        refused={"attention": "query times key"},
        aside=("1x3",),
    ),
    _encoder(
        "nystromformer",
        "Nystromformer",
        "low rank",
        segment_means_seq_len=11,
        num_landmarks=11,
        conv_kernel_size=3,
    ),
    _encoder(
        "longformer",
        "Longformer",
        "banded",
        attention_window=[4, 4],
        pad_token_id=1,
        towers={},
        refused={"self": "banded"},
    ),
    _encoder(
        "reformer",
        "Reformer",
        "hashing",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "num_attention_heads": 6,
            "attention_head_size": 10,
            "feed_forward_size": 68,
            "attn_layers": ["local", "lsh"],
            "axial_pos_embds": False,
            "max_position_embeddings": 64,
            "local_attn_chunk_length": 8,
            "lsh_attn_chunk_length": 8,
            "num_buckets": 2,
            "is_decoder": False,
            "hash_seed": 7,
        },
        towers={},
        refused={"attention": "softmax"},
    ),
    _encoder(
        "yoso", "Yoso", "hashing", towers={}, refused={"attention": "softmax"}, use_fast_hash=False
    ),
    _encoder(
        "fnet",
        "FNet",
        "Fourier",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "intermediate_size": 68,
            "max_position_embeddings": 64,
        },
        towers={},
        refused={"": "softmax"},
    ),
    _encoder(
        "rwkv",
        "Rwkv",
        "linear",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "attention_hidden_size": 60,
        },
        head="RwkvForCausalLM",
        towers={},
        refused={"attention": "softmax"},
    ),
    _encoder(
        "mamba",
        "Mamba",
        "state space",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "state_size": 8,
            "time_step_rank": 5,
        },
        head="MambaForCausalLM",
        towers={},
        refused={"mixer": "softmax"},
    ),
    _both("t5", "T5", "position bias", base=T5),
    _both("umt5", "UMT5", "position bias", base=T5, gain=0.7),
    _both(
        "switch_transformers",
        "SwitchTransformers",
        "position bias",
        base=T5,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=3,
        aside=("router",),
    ),
    _both(
        "longt5",
        "LongT5",
        "position bias",
        "local blocks",
        base=T5,
        local_radius=3,
        towers={"decoder": Seen(2, 6), "cross": Seen(2, 6)},
        refused={"LocalSelfAttention": "einsum"},
        aside=("LocalSelfAttention",),
    ),
    _both("bart", "Bart"),
    _both("mbart", "MBart"),
    _both("pegasus", "Pegasus"),
    _both("marian", "Marian", head="MarianMTModel"),
    _both("m2m_100", "M2M100"),
    _both("blenderbot", "Blenderbot"),
    _both(
        "fsmt",
        "FSMT",
        base={k: v for k, v in BOTH_SIDES.items() if k != "vocab_size"},
        src_vocab_size=VOCABULARY,
        tgt_vocab_size=VOCABULARY,
        langs=["en", "de"],
    ),
    _both(
        "led",
        "LED",
        "banded",
        attention_window=[4, 4],
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
        towers={"decoder": Seen(2, 4), "cross": Seen(2, 4)},
        refused={"longformer_self_attn": "banded"},
    ),
    _both(
        "prophetnet",
        "ProphetNet",
        "two streams",
        base={
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "encoder_ffn_dim": 68,
            "decoder_ffn_dim": 52,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 6,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 64,
            "ngram": 2,
            "pad_token_id": 0,
        },
        towers={
            "encoder": Seen(2, 6),
            "decoder": Seen(2, 4),
            "decoder_decoder": Seen(2, 4),
            "cross": Seen(2, 4),
        },
        note="the stream that predicts two tokens ahead is a tower of its own",
    ),
]
