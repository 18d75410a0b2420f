"""Norms and unembeddings that the anatomy names, beside what a person reads in the model's code."""

from __future__ import annotations

import pytest

from probes.load_error import LoadError
from probes.subject import Subject

from .families import FAMILIES
from .measure import subject_of

BY_NAME = {family.name: family for family in FAMILIES}

ENDS = {
    "gpt2": ({"language": "transformer.ln_f"}, "lm_head"),
    "llama": ({"language": "model.norm"}, "lm_head"),
    "gemma2": ({"language": "model.norm"}, "lm_head"),
    "gpt_oss": ({"language": "model.norm"}, "lm_head"),
    "opt": ({"language": "model.decoder.final_layer_norm"}, "lm_head"),
    "bloom": ({"language": "transformer.ln_f"}, "lm_head"),
    "bamba": ({"language": "model.final_layernorm"}, "lm_head"),
    "vit": ({"vision": "vit.layernorm"}, "classifier"),
    "llava": (
        {
            "vision": "model.vision_tower.post_layernorm",
            "language": "model.language_model.norm",
        },
        "lm_head",
    ),
    "whisper": (
        {"encoder": "model.encoder.layer_norm", "decoder": "model.decoder.layer_norm"},
        "proj_out",
    ),
    "t5": (
        {"encoder": "encoder.final_layer_norm", "decoder": "decoder.final_layer_norm"},
        "lm_head",
    ),
    # Post-norm: the last norm is inside the block, and a pooler or transform stands before the
    # output, so nothing may be named.
    "bert": ({}, ""),
    "bart": ({}, ""),
}

NEED_TENSORS = {
    "timesformer",
    "videomae",
    "vivit",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics2",
    "idefics3",
    "smolvlm",
    "mllama",
    "lxmert",
    "layoutlmv3",
    "audio_spectrogram_transformer",
    "time_series_transformer",
}
"""Without a processor or tensors, the input of these cannot be guessed."""


@pytest.mark.parametrize("name", ENDS)
def test_final_norm_and_unembedding(name: str) -> None:
    family = BY_NAME[name]
    subject, _ = subject_of(family.build(), family.inputs(), name)
    anatomy = subject.layout.anatomy
    assert (dict(anatomy.final_norm), anatomy.unembedding) == ENDS[name]


def test_towers_are_found_without_tensors_where_the_input_can_be_guessed() -> None:
    unguessed = set()
    for family in FAMILIES:
        subject = Subject(family.build(), name=family.name)
        try:
            towers = subject.layout.towers
        except LoadError as error:
            assert "subject.prepare(...)" in str(error)
            unguessed.add(family.name)
            continue
        expected = set(family.towers)
        if family.name == "trocr":  # alone it has nothing to read across to
            expected.discard("cross")
        assert set(towers) == expected, family.name
    assert unguessed <= NEED_TENSORS
