"""Where a block's feed-forward part writes, found by adding up, in families that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from probes.feed_forward import feed_forward_outputs, feed_forwards, outputs_held
from probes.heads import Site
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny

IDS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12]])


def neox() -> Any:
    """Attention and MLP side by side, both of the block's input."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(1)
    settings = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 3, "intermediate_size": 14, "use_parallel_residual": True}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**settings)).eval()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny.llama, "model.layers.1.mlp"),
        (tiny.gpt2, "transformer.h.1.mlp"),
        (neox, "gpt_neox.layers.1.mlp"),
    ],
)
def test_found_in_language_models(make: Any, expected: str) -> None:
    subject = Subject(make(), tiny.tokenizer("left"))
    found = feed_forwards(subject, subject.prepare(input_ids=IDS))
    assert not found.missing
    assert found.paths[Site("language", 1)] == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_found_in_both_towers_and_with_layer_scale() -> None:
    llava = load("shapes-llava")
    batch = llava.prepare(text="describe the scene", images=[Image.new("RGB", (48, 48))])
    found = feed_forwards(llava, batch)
    assert not found.missing
    assert len(found.paths) == 7
    assert found.paths[Site("vision", 2)].endswith("layers.2.mlp")
    dino = load("shapes-vit")
    batch = dino.prepare(images=[Image.new("RGB", (32, 32), (200, 30, 60))])
    found = feed_forwards(dino, batch)
    assert found.paths[Site("vision", 3)].endswith("layer_scale2")


def test_held_outputs_are_what_the_model_goes_on_with() -> None:
    """Another input with the MLPs of this one, against zero MLP weights and a bias of ours."""
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    given = feed_forward_outputs(subject, batch)
    assert set(given) == {f"model.layers.{n}.mlp" for n in range(3)}
    plain = subject.forward(batch).logits
    with outputs_held(subject.model, given):
        assert torch.equal(subject.forward(batch).logits, plain)
    nothing = {path: torch.zeros_like(value) for path, value in given.items()}
    with outputs_held(subject.model, nothing):
        held = subject.forward(batch).logits
    model: Any = subject.model
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
    assert torch.allclose(subject.forward(batch).logits, held, atol=1e-6)
    assert not torch.allclose(held, plain, atol=1e-3)


def test_held_outputs_survive_a_block_that_adds_to_them_in_place() -> None:
    """Falcon adds its attention to the very tensor that its MLP gave."""
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(6)
    settings = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2, "parallel_attn": True}
    model = FalconForCausalLM(FalconConfig(**settings, num_attention_heads=3)).eval()
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    seen: list[torch.Tensor] = []
    handle = model.transformer.h[1].mlp.register_forward_hook(
        lambda *hooked: seen.append(hooked[2].clone())
    )
    plain = subject.forward(batch).logits
    handle.remove()
    given = feed_forward_outputs(subject, batch)
    assert torch.equal(given["transformer.h.1.mlp"], seen[0])
    with outputs_held(subject.model, given):
        for _ in range(2):
            assert torch.equal(subject.forward(batch).logits, plain)
    assert torch.equal(given["transformer.h.1.mlp"], seen[0])


def test_a_norm_behind_the_sum_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(2)
    settings = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 3, "intermediate_size": 14, "is_decoder": True}
    subject = Subject(BertLMHeadModel(BertConfig(**settings)).eval(), tiny.tokenizer())
    batch = subject.prepare(input_ids=IDS)
    assert not feed_forwards(subject, batch).paths
    with pytest.raises(ValueError, match="MLPs must be known to be frozen, that of language.L0"):
        feed_forward_outputs(subject, batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())
