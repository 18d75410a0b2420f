"""Weights of heads: found whatever the layout, equal to the model's own, or refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.load_error import LoadError
from probes.loading import load
from probes.subject import Subject
from probes.weights.head_weight_search import head_weights
from probes.weights.head_weights import HeadWeights
from tests import tiny_models as tiny

WIDTH, HEADS, HEAD_WIDTH, TOKENS = 10, 3, 5, 7


class Attention(nn.Module):
    """Attention with three heads of width 5 on a stream of width 10, its layout left open."""

    kv_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * self.kv_heads) * HEAD_WIDTH)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        groups = HEADS // self.kv_heads
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        z = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(z.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_WIDTH)).unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class Interleaved(Attention):
    """Query, key and value of head 0, then of head 1, and so on (GPT-NeoX, Falcon, BLOOM)."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.qkv(x).unflatten(-1, (HEADS, 3 * HEAD_WIDTH)).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)
        return query, key, value


class Backwards(Attention):
    """Heads in reverse order, values before keys, the width of each head turned around."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, key, query = (
            t.flip(1).flip(-1)
            for t in self.qkv(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        )
        return query, key, value


class OneKey(Attention):
    """Multi-query attention: one key and value head for three query heads."""

    kv_heads = 1

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).split([HEADS * HEAD_WIDTH, HEAD_WIDTH, HEAD_WIDTH], -1)
        return query.unflatten(-1, (HEADS, -1)).transpose(1, 2), key[:, None], value[:, None]


class Scaled(Attention):
    """The query times 1 / sqrt(5) before the heads are cut, the value times 3 in place."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query = query * HEAD_WIDTH**-0.5
        value = value.contiguous()
        value *= 3.0
        parts = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (query, key, value))
        return tuple(parts)  # pyright: ignore[reportReturnType]


class Rotary(Attention):
    """Pairs of numbers turned by an angle that grows with the position, in place."""

    angle = 0.3

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().split(x)
        return self.turned(query.clone()), self.turned(key.clone()), value

    def turned(self, t: Tensor) -> Tensor:
        angle = self.angle * torch.arange(t.shape[2], dtype=t.dtype)[:, None]
        left, right = t[..., :2].clone(), t[..., 2:4].clone()
        t[..., :2] = left * angle.cos() - right * angle.sin()
        t[..., 2:4] = left * angle.sin() + right * angle.cos()
        return t


class Deaf(Rotary):
    """Query and key turned the opposite way: same lengths, other products."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = Attention.split(self, x)
        self.angle = 0.3
        query = self.turned(query.clone())
        self.angle = -0.7
        return query, self.turned(key.clone()), value


class Normed(Attention):
    """A norm on the query of each head, as in Qwen3."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HEAD_WIDTH)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().split(x)
        return self.norm(query), key, value


class Latent(Attention):
    """Keys and values from a compressed, normalised latent, as in DeepSeek."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Linear(WIDTH, 4), nn.LayerNorm(4)
        self.up = nn.Linear(4, 2 * HEADS * HEAD_WIDTH)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = super().split(x)[0]
        key, value = self.up(self.norm(self.down(x))).unflatten(-1, (2, HEADS, -1)).unbind(2)
        return query, key.transpose(1, 2), value.transpose(1, 2)


class Squashed(Attention):
    """Values through a tanh: no matrix gives them."""

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().split(x)
        return query, key, value.tanh()


class Adapter(nn.Module):
    """A linear map with a low-rank correction, as LoRA writes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.7 * self.up(self.down(x))


class Biased(Attention):
    """A learned bias per head added to the query (Transformer-XL, DeBERTa)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(HEADS, 1, HEAD_WIDTH))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().split(x)
        return query + self.bias, key, value


class Behind(nn.Module):
    """An output projection with something behind it, before the residual stream."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.attention, self.change = Attention(), change

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attention.split(x)
        z = nn.functional.scaled_dot_product_attention(query, key, value)
        return x + self.change(self.attention.out(z.transpose(1, 2).flatten(2)))


class Gains(nn.Module):
    """LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1.0, 2.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Stack(nn.Module):
    """Two layers, each behind a norm, so that there is something to take apart."""

    def __init__(self, kind: type[Attention]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([kind(), kind()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def weights_of(model: nn.Module) -> dict[Site, HeadWeights]:
    generator = torch.Generator().manual_seed(1)
    subject = Subject(model.eval())
    batch = subject.prepare(x=torch.randn(2, TOKENS, WIDTH, generator=generator))
    return head_weights(subject, batch)


def first(kind: type[Attention]) -> tuple[HeadWeights, Any]:
    model = Stack(kind)
    return next(iter(weights_of(model).values())), model.layers[0]


def test_fused_weights_are_cut_as_the_model_cuts_them() -> None:
    found, layer = first(Attention)
    assert found.complete and found.kv_of_head == (0, 1, 2) and not found.rotary
    rows = layer.qkv.weight.detach()
    assert found.query is not None and found.key is not None and found.value is not None
    # Head 2's key: second third, third block of five rows.
    assert torch.equal(found.key.matrix()[2], rows[25:30].T)
    assert torch.equal(found.value.matrix()[0], rows[30:35].T)
    assert torch.equal(found.query.bias()[1], layer.qkv.bias.detach()[5:10])
    output = found.output()
    assert output is not None and torch.equal(output[1], layer.out.weight.detach()[:, 5:10].T)


def test_interleaved_and_reversed_layouts_are_found_too() -> None:
    found, layer = first(Interleaved)
    rows = layer.qkv.weight.detach()
    assert found.value is not None and torch.equal(found.value.matrix()[1], rows[25:30].T)
    found, layer = first(Backwards)
    rows = layer.qkv.weight.detach()
    assert found.query is not None and found.value is not None
    # Head 0 is the last block, its width from the end.
    assert torch.equal(found.value.matrix()[0], rows[10:15].flip(0).T)
    assert torch.equal(found.query.matrix()[2], rows[30:35].flip(0).T)


def test_one_key_for_all_is_kept_once_and_expanded() -> None:
    found, layer = first(OneKey)
    assert found.kv_of_head == (0, 0, 0)
    assert found.key is not None and found.key.matrix().shape == (1, WIDTH, HEAD_WIDTH)
    every = found.per_query_head(found.key.matrix())
    assert torch.equal(every[2], layer.qkv.weight.detach()[15:20].T)


def test_a_constant_belongs_to_the_value_but_not_to_the_query() -> None:
    found, layer = first(Scaled)
    rows = layer.qkv.weight.detach()
    assert found.complete and found.query is not None and found.value is not None
    assert torch.equal(found.query.matrix()[0], rows[:5].T)
    torch.testing.assert_close(found.value.matrix()[0], 3 * rows[30:35].T)


def test_what_comes_before_a_rotation_is_taken_and_the_rotation_checked() -> None:
    found, layer = first(Rotary)
    assert found.complete and found.rotary
    assert found.query is not None
    assert torch.equal(found.query.matrix()[1], layer.qkv.weight.detach()[5:10].T)
    found, _ = first(Deaf)
    assert set(found.missing) == {"query", "key"} and found.value is not None
    assert "does not keep query times key at the same place" in found.missing["query"]


def test_a_norm_behind_the_projection_is_named() -> None:
    found, layer = first(Normed)
    assert found.complete and found.normed == "layers.0.norm" and not found.rotary
    assert found.query is not None
    assert torch.equal(found.query.matrix()[1], layer.qkv.weight.detach()[5:10].T)


def test_what_is_no_matrix_is_not_measured_and_says_why() -> None:
    found, _ = first(Latent)
    assert set(found.missing) == {"key", "value"} and found.query is not None
    assert found.missing["value"] == (
        "The value was not traced to a linear map: layers.0.up reads what layers.0.down made of "
        "the layer's input, so no single matrix takes the residual stream there."
    )
    found, _ = first(Squashed)
    assert found.missing == {
        "value": "The value was not traced to a linear map: after its projection it passes tanh."
    }


def test_an_adapter_is_taken_with_its_correction() -> None:
    model = Stack(Attention)
    layer: Any = model.layers[0]
    layer.qkv = Adapter(layer.qkv)
    found = next(iter(weights_of(model).values()))
    full = (layer.qkv.base.weight + 0.7 * layer.qkv.up.weight @ layer.qkv.down.weight).detach()
    assert found.complete and found.value is not None
    torch.testing.assert_close(found.value.matrix()[1], full[35:40].T)
    torch.testing.assert_close(found.value.bias()[1], layer.qkv.base.bias.detach()[35:40])


def test_a_bias_that_is_added_later_is_part_of_the_bias() -> None:
    found, layer = first(Biased)
    assert found.complete and found.query is not None
    assert torch.equal(found.query.matrix()[0], layer.qkv.weight.detach()[:5].T)
    expected = layer.qkv.bias.detach()[5:10] + layer.bias.detach()[1, 0]
    torch.testing.assert_close(found.query.bias()[1], expected)


def test_outputs_that_cannot_be_told_apart_are_refused_unless_they_are_the_same() -> None:
    model = Stack(Attention)
    layer: Any = model.layers[0]
    with torch.no_grad():  # a pruned head: zeros everywhere are the same whichever is taken
        layer.qkv.weight[30:35] = 0
        layer.qkv.bias[30:35] = 0
    found = next(iter(weights_of(model).values()))
    assert found.value is not None and not found.value.matrix()[0].any()
    subject = Subject(model.eval())
    one_place = subject.prepare(x=torch.eye(WIDTH)[:1].expand(1, TOKENS, WIDTH))
    with torch.no_grad():  # two outputs that differ only in a direction the input has not
        layer.qkv.weight[31] = torch.eye(WIDTH)[4]
    blind = next(iter(head_weights(subject, one_place).values()))
    assert "cannot be told apart on this sample" in blind.missing["value"]


def test_what_stands_between_the_output_and_the_stream() -> None:
    def behind(change: nn.Module) -> HeadWeights:
        model = nn.Module()
        model.layers = nn.ModuleList([Behind(change), Behind(copy.deepcopy(change))])
        model.forward = lambda x: model.layers[1](model.layers[0](x))
        return next(iter(weights_of(model).values()))

    gains = Gains()
    found = behind(gains)
    output, into_stream = found.output(), found.stream_output()
    assert output is not None and into_stream is not None
    torch.testing.assert_close(into_stream, output * gains.gamma.detach())
    norm = nn.LayerNorm(WIDTH)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.0, 2.0, WIDTH))
    found = behind(norm)
    output, into_stream = found.output(), found.stream_output()
    assert output is not None and into_stream is not None
    assert found.written is not None and found.written.path == "layers.0.change"
    centred = output - output.mean(-1, keepdim=True)
    torch.testing.assert_close(into_stream, centred * norm.weight.detach(), atol=1e-4, rtol=1e-4)
    found = behind(nn.Tanh())
    assert found.complete and found.stream_output() is None
    assert "is changed, and not channel by channel" in found.missing["stream"]


def gpt2_output(found: HeadWeights, x: Tensor, bias: Tensor) -> Tensor:
    """Causal attention written out with the four matrices and nothing of the model's."""
    assert found.query is not None and found.key is not None and found.value is not None
    total = bias.expand(*x.shape).clone()
    output = found.output()
    assert output is not None
    for head in range(found.heads):
        kv = found.kv_of_head[head]
        query = x @ found.query.matrix()[head] + found.query.bias()[head]
        key = x @ found.key.matrix()[kv] + found.key.bias()[kv]
        value = x @ found.value.matrix()[kv] + found.value.bias()[kv]
        scores = query @ key.mT / query.shape[-1] ** 0.5
        hidden = torch.ones_like(scores).triu(1).bool()
        pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        total += pattern @ value @ output[head]
    return total


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_four_matrices_give_the_layer_back(implementation: str) -> None:
    model = tiny.gpt2(attn_implementation=implementation)
    found = head_weights(Subject(model))[Site("language", 1)]
    attention = model.transformer.h[1].attn
    x = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(2))
    future = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        expected = attention(x, attention_mask=future)[0]
    assert found.complete
    got = gpt2_output(found, x, attention.c_proj.bias.detach())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_grouped_queries_with_rotary_positions(implementation: str) -> None:
    model = tiny.llama(attn_implementation=implementation)
    for layer, found in enumerate(head_weights(Subject(model)).values()):
        attention = model.model.layers[layer].self_attn
        assert found.complete and found.rotary and found.kv_of_head == (0, 0, 0, 1, 1, 1)
        assert found.query is not None and found.key is not None and found.value is not None
        query = attention.q_proj.weight.detach().view(6, 10, 30).mT
        assert torch.equal(found.query.matrix(), query)
        assert torch.equal(found.key.matrix(), attention.k_proj.weight.detach().view(2, 10, 30).mT)
        assert torch.equal(found.value.matrix()[1], attention.v_proj.weight.detach()[10:].T)


def test_half_precision_is_exact_too() -> None:
    model = tiny.llama().to(torch.bfloat16)
    found = head_weights(Subject(model))[Site("language", 2)]
    assert found.complete and found.key is not None and found.key.matrix().dtype == torch.float32
    weight = model.model.layers[2].self_attn.k_proj.weight.detach()
    assert torch.equal(found.key.matrix()[1], weight[10:].float().T)


def test_the_stream_matrix_holds_the_gains_of_the_norm_and_its_centring() -> None:
    model = tiny.gpt2()
    norm = model.transformer.h[0].ln_1
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 12))
        norm.bias.copy_(torch.linspace(-1, 1, 12))
    found = head_weights(Subject(model))[Site("language", 0)]
    assert found.value is not None and found.value.norm is not None and found.value.norm.centred
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(4))
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    through = norm(x).detach() @ found.value.matrix()[2]
    shift = norm.bias.detach() @ found.value.matrix()[2]
    got = x @ found.value.stream_matrix()[2] / scale + shift
    torch.testing.assert_close(got, through, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["repeat-lm", "prose-lm", "shapes-vit", "shapes-llava"])
def test_bundled_models_are_known_completely(name: str) -> None:
    subject = load(name)
    found = head_weights(subject)
    assert set(found) == {place.site for place in subject.layout.sites}
    assert all(one.complete and not one.normed for one in found.values())


def bridge_of(model: Any, tokenizer: Any, name: str, folder: Path) -> Any:
    """A TransformerBridge on a copy: it renames the modules of its model for good."""
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)  # the Bridge asks the tokenizer where it came from
    return TransformerBridge.boot_transformers(
        name,
        hf_model=copy.deepcopy(model),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
    )


@pytest.mark.parametrize("source", ["gpt2", "llama", "repeat-lm"])
def test_transformer_lens_has_the_same_matrices(source: str, tmp_path: Path) -> None:
    if source == "repeat-lm":
        subject = load(source)
        tokenizer = subject.tokenizer
    else:
        subject = Subject(getattr(tiny, source)())
        tokenizer = tiny.tokenizer("left")
    name = "gpt2" if source == "gpt2" else "meta-llama/Llama-3.2-1B"
    bridge = bridge_of(subject.model, tokenizer, name, tmp_path)
    heads = subject.towers["language"].heads
    for site, found in head_weights(subject).items():
        assert found.query is not None and found.key is not None and found.value is not None
        ours = {
            "W_Q": found.query.matrix(),
            "W_K": found.per_query_head(found.key.matrix()),
            "W_V": found.per_query_head(found.value.matrix()),
            "W_O": found.output(),
        }
        for matrix, mine in ours.items():
            theirs = getattr(bridge, matrix)[site.layer].detach()
            theirs = theirs.repeat_interleave(int(heads) // theirs.shape[0], dim=0)
            assert mine is not None
            assert torch.equal(mine, theirs), f"{source} {site} {matrix}"


def test_nothing_is_left_behind_and_a_model_without_a_sample_says_what_to_do() -> None:
    model = Stack(Attention).train()
    subject = Subject(model)
    with pytest.raises(LoadError, match=r"cannot be guessed.*subject\.prepare"):
        head_weights(subject)
    batch = subject.prepare(x=torch.randn(1, TOKENS, WIDTH))
    head_weights(subject, batch)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop here")

    handle = model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        head_weights(subject, batch)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
