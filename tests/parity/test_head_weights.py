"""Weights of heads in many families: values, queries and keys made from them are the model's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.listening import listen
from probes.weights.head_weight_search import head_weights
from probes.weights.head_weights import HeadMap

from .families import FAMILIES
from .measure import seeded, subject_of

BY_NAME = {family.name: family for family in FAMILIES}

COMPLETE = [
    "gpt2",
    "gpt_bigcode",  # fused, one key for all
    "gptj",  # half of each head turned, every other number
    "codegen",  # fused in blocks
    "gpt_neox",  # fused head by head
    "falcon",
    "bloom",
    "opt",  # the query is scaled before it is cut
    "phi3",
    "qwen3",  # a norm on each head's query and key
    "olmo2",  # a norm on all heads at once, and one behind the output
    "gemma2",
    "deberta",  # biases of its own, relative positions
    "funnel",
    "swin",
    "beit",
    "vitdet",  # products with relative positions beside the scores
    "detr",
    "whisper",
    "mllama",
    "qwen2_5_vl",  # windows
]

REFUSED = {
    "deepseek_v3": ("value", "reads what model.layers.0.self_attn.kv_a_proj_with_mqa made"),
    "segformer": ("key", "sequence_reduction made of the layer's input"),
    "levit": ("query", "batch_norm"),
    "xlnet": ("value", "no linear map was seen to make it"),
    "squeezebert": ("output", "No linear map was seen to read z"),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_tensors_made_from_the_weights_are_those_of_the_model(name: str) -> None:
    family = BY_NAME[name]
    model = family.build()
    subject, batch = subject_of(model, family.inputs(), name)
    found = head_weights(subject, batch)
    assert set(found) == {place.site for place in subject.layout.sites}
    assert all(one.complete for one in found.values()), name

    read: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: read[path].append(args[0].detach())
        )
        for path in {
            head_map.source.path
            for one in found.values()
            for head_map in (one.query, one.key, one.value)
            if head_map is not None
        }
    ]
    compared: set[Site] = set()
    products: set[Site] = set()

    def compare(call: AttentionCall) -> None:
        weights = found[call.site]
        assert weights.value is not None
        value = weights.per_query_head(weights.value.matrix())
        made = made_by(weights.value, read[weights.value.source.path][-1])
        if made.shape[1] != call.keys or made.shape[0] != call.batch:
            return  # windows, or a module that is not called
        theirs = expanded(call.value, call.heads)
        assert value.shape[0] == call.heads
        ours = made[:, :, list(weights.kv_of_head)].transpose(1, 2)
        torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-3)
        compared.add(call.site)
        if call.query is None or call.key is None or weights.normed or call.queries != call.keys:
            return
        assert weights.query is not None and weights.key is not None
        query = made_by(weights.query, read[weights.query.source.path][-1]).transpose(1, 2)
        key = made_by(weights.key, read[weights.key.source.path][-1])
        key = key[:, :, list(weights.kv_of_head)].transpose(1, 2)
        same_place = (call.query.float() * expanded(call.key, call.heads).float()).sum(-1)
        ours = (query * key).sum(-1)
        # The model may have scaled the query already.
        factor = (same_place * ours).sum() / ours.square().sum()
        torch.testing.assert_close(same_place, factor * ours, atol=1e-3, rtol=1e-3)
        products.add(call.site)

    with listen(subject, batch, compare):
        seeded(subject, batch)
    for handle in handles:
        handle.remove()
    if name not in ("swin", "vitdet", "qwen2_5_vl"):
        assert compared, name
    if name in ("gpt_bigcode", "falcon", "phi3", "gpt_neox", "opt"):
        assert products == compared, name


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_matrix_is_refused_by_name(name: str) -> None:
    family = BY_NAME[name]
    subject, batch = subject_of(family.build(), family.inputs(), name)
    part, reason = REFUSED[name]
    found = next(iter(head_weights(subject, batch).values()))
    assert reason in found.missing[part]


def made_by(head_map: HeadMap, x: Any) -> Tensor:
    """Float32 ``[batch row head head_width]`` of a module's input ``[..., width]``."""
    made = torch.einsum("...w,hwd->...hd", x.float(), head_map.matrix()) + head_map.bias()
    return made if made.ndim == 4 else made[None]


def expanded(of_heads: Tensor, heads: int) -> Tensor:
    return of_heads.repeat_interleave(heads // of_heads.shape[1], dim=1)
