"""Idefics3, SmolVLM, InternVL, Gemma 3, PaliGemma, Idefics2 and BLIP-2, against the real models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from planting import assert_found, entering, scene, silence
from small_tiled_vlms import (
    IMAGE,
    SEEING,
    TEXT,
    Case,
    aya,
    gemma3,
    idefics2,
    idefics3,
    internvl,
    paligemma,
    smolvlm,
)
from small_tokenizers import word_tokenizer
from torch import nn
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from probes.tokens import ROLES, TowerFacts, map_tokens

FAMILIES: dict[str, Callable[[], Case]] = {
    "idefics3": idefics3,
    "idefics3_whole": lambda: idefics3(False),
    "smolvlm": smolvlm,
    "internvl": internvl,
    "internvl_whole": lambda: internvl(False),
    "gemma3": gemma3,
    "gemma3_whole": lambda: gemma3(False),
    "paligemma": paligemma,
    "aya_vision": lambda: aya(AyaVisionForConditionalGeneration, AyaVisionConfig, "cohere"),
    "cohere2_vision": lambda: aya(
        Cohere2VisionForConditionalGeneration, Cohere2VisionConfig, "cohere2"
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_planted_patches_are_found(name):
    torch.manual_seed(5)
    case = FAMILIES[name]()
    case.model.eval()
    layers = _layers(case)
    images = [scene(170, 80), scene(90, 100)]
    tokens = case.map(images, case.tensors(images))
    language, vision = tokens["language"], tokens["vision"]
    assert (language.row[language.has_role("image")] >= 0).all(), "every image token has a place"
    tiled = int(language.tile.max()) > 0
    assert tiled == (name not in ("idefics3_whole", "internvl_whole", "gemma3_whole", "paligemma"))
    silence(layers)

    def enter(module):
        return lambda changed: entering(case.model, module, case.tensors(changed))

    assert_found(vision, images, enter(layers[0]), count=9)
    assert_found(language, images, enter(case.model.get_submodule(case.language)), count=9)


def _layers(case: Case) -> nn.Module:
    try:
        return case.model.get_submodule(case.layers)
    except AttributeError:
        case.layers = case.layers.replace(".vision_model", "")
        return case.model.get_submodule(case.layers)


@pytest.mark.parametrize("split", [False, True])
def test_idefics2_has_patches_in_vision_and_queries_in_language(split):
    torch.manual_seed(5)
    case = idefics2(split)
    case.model.eval()
    images = [scene(170, 90), scene(90, 110)]
    made = case.tensors(images)
    tokens = case.map(images, made)
    language = tokens["language"]
    queries = language.has_role("image")
    assert queries.sum() == 2 * 3 * (5 if split else 1)
    assert (language.row[queries] == -1).all() and torch.isnan(language.box[queries]).all()
    tiles = [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [0] * 3 if split else [0] * 3
    assert language.tile[queries & (language.example == 1)].tolist() == tiles
    with torch.no_grad():
        assert case.model(**made).logits.shape[1] == language.lengths[0]
    vision = tokens["vision"]
    assert vision.has_role("pad").sum() > 0
    assert torch.isnan(vision.box[vision.has_role("pad")]).all()
    layers = case.model.get_submodule(case.layers)
    silence(layers)
    assert_found(
        vision,
        images,
        lambda changed: entering(case.model, layers[0], case.tensors(changed)),
        count=9,
    )


def test_blip2_queries_stand_before_bos_and_have_no_place():
    torch.manual_seed(5)
    config = Blip2Config(
        vision_config=SEEING,
        qformer_config={
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 13,
            "encoder_hidden_size": 12,
            "vocab_size": 40,
        },
        text_config=TEXT
        | {
            "model_type": "opt",
            "ffn_dim": 18,
            "word_embed_proj_dim": 20,
            "max_position_embeddings": 64,
        },
        num_query_tokens=3,
        image_token_index=IMAGE,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 20, "width": 20}),
        word_tokenizer("<image>", padding_side="left"),
        num_query_tokens=3,
    )
    from probes.collate import collate
    from probes.inputs import Example

    examples = [
        Example("a", question="what is this", answer="a circle", image=scene(80, 60)),
        Example("b", question="what", answer="red", image=scene(60, 60)),
    ]
    made = collate(examples, processor, processor.tokenizer, kind="vision-language", config=config)
    tokens = map_tokens(
        model,
        processor,
        made.tensors,
        ["language", "vision", TowerFacts("cross", path="qformer.encoder.layer.*.crossattention")],
        image_sizes=made.image_sizes,
    )
    language = tokens["language"]
    words = [ROLES[role] for role in language.role.tolist()]
    length = int(language.lengths[0])
    assert words[:length] == ["image"] * 3 + ["bos"] + ["text"] * 5
    assert words[length:].count("image") == 3 and words[length:].count("bos") == 1
    assert (language.row == -1).all()
    starts = [made.tensors["input_ids"][row, start] for row, start in enumerate(made.answer_starts)]
    tokenizer = processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(torch.stack(starts).tolist()) == ["a", "red"]
    assert tokens["vision"].lengths.tolist() == [17, 17]
    assert tokens["cross"].lengths.tolist() == [3, 3]
    with torch.no_grad():
        out = model(**made.tensors)
    assert out.logits.shape[1] == length
    assert out.vision_outputs.last_hidden_state.shape[1] == 17
