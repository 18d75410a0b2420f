"""What one forward shows of a model: towers, layers, heads, anatomy, refusals."""

import pytest
import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.layout import Layout
from probes.observe import observe
from tests import tiny_models as tiny

IDS = torch.tensor([[1, 5, 6, 7, 8, 5, 6], [1, 9, 10, 11, 12, 9, 10]])


def layout(model: nn.Module, **tensors: Tensor) -> Layout:
    examples = next(iter(tensors.values())).shape[0]
    return observe(model, lambda: model(**tensors), examples=examples, inputs=tensors)


def test_heads_and_kv_heads_of_grouped_queries() -> None:
    for implementation in ("sdpa", "eager"):
        seen = layout(tiny.llama(attn_implementation=implementation), input_ids=IDS)
        tower = seen.towers["language"]
        assert (tower.layers, tower.heads, tower.kv_heads, tower.head_width) == (3, 6, 2, 10)
        assert tower.template == "model.layers.*.self_attn"
        assert all(site.causal and site.mismatch < 1e-5 for site in tower.sites.values())


def test_the_source_is_what_the_model_really_runs() -> None:
    for implementation, source in (("sdpa", "sdpa"), ("eager", "softmax")):
        seen = layout(tiny.gpt2(attn_implementation=implementation), input_ids=IDS)
        assert {site.source for site in seen.sites} == {source}


def test_towers_are_named_by_what_they_are() -> None:
    pixels = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    assert list(layout(tiny.vit(), pixel_values=pixels).towers) == ["vision"]
    both = layout(tiny.clip(), input_ids=IDS, pixel_values=pixels)
    assert {name: (t.layers, t.heads) for name, t in both.towers.items()} == {
        "vision": (2, 3),
        "language": (3, 2),
    }


def test_encoder_decoder_and_cross_attention_are_three_towers() -> None:
    seen = layout(tiny.t5(), input_ids=IDS, decoder_input_ids=IDS[:, :5])
    assert list(seen.towers) == ["encoder", "decoder", "cross"]
    cross = seen.towers["cross"].sites
    assert all(site.cross and site.key_tower == "encoder" for site in cross.values())
    assert not any(site.cross for site in seen.towers["decoder"].sites.values())


def test_anatomy_of_a_language_model() -> None:
    model = tiny.gpt2()
    anatomy = layout(model, input_ids=IDS).anatomy
    assert anatomy.projections[Site("language", 1)].path == "transformer.h.1.attn.c_proj"
    assert anatomy.blocks[Site("language", 0)].residual
    assert anatomy.final_norm == {"language": "transformer.ln_f"}
    assert anatomy.unembedding == "lm_head"
    assert not anatomy.missing
    matrix = anatomy.output_matrix(Site("language", 1))
    weight = model.transformer.h[1].attn.c_proj.weight
    assert matrix is not None and torch.equal(matrix[2], weight[8:12].detach())


class Gated(nn.Module):
    """Attention whose output is gated before the projection: no sum of heads there."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gate, self.out = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        z = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(z.transpose(1, 2).flatten(2) * self.gate(x).sigmoid())


def test_a_projection_behind_a_gate_is_not_measured_and_says_so() -> None:
    torch.manual_seed(0)
    seen = layout(Gated().eval(), x=torch.randn(2, 5, 6))
    (site,) = seen.sites
    assert site.heads == 2
    assert not seen.anatomy.projections
    assert seen.anatomy.output_matrix(site.site) is None
    assert "No linear map was seen to read z." in seen.anatomy.missing.values()


class Dynamic(nn.Module):
    """A softmax over a projected input, multiplied with values: no query, no key."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.value = nn.Linear(6, 5), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x).softmax(-1) @ self.value(x)


class Channels(nn.Module):
    """Cross-covariance attention: a map between channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 4, 1)
        z = (query @ key.mT).softmax(-1) @ value
        return self.out(z.permute(0, 3, 1, 2).flatten(2))


class Wrong(Gated):
    """Adds noise behind the kernel's back: pattern @ value is not what it hands on."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        z = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
        return self.out(z.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Dynamic, "A softmax that does not come from query times key."),
        (Channels, "Attention between channels, not between tokens"),
        (Wrong, "Pattern @ value differs from z"),
    ],
)
def test_what_is_no_attention_between_tokens_is_refused_by_name(
    module: type[nn.Module], reason: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(module().eval())
    seen = observe(model, lambda: model(torch.randn(2, 5, 6)), examples=2)
    assert not seen.towers
    assert [refusal.path for refusal in seen.refusals] == ["0"]
    assert reason in seen.refusals[0].reason


def test_a_mixer_without_softmax_is_refused_and_a_network_without_attention_is_empty() -> None:
    from transformers import MambaConfig, MambaModel

    mamba = MambaModel(MambaConfig(num_hidden_layers=2, hidden_size=8, vocab_size=31)).eval()
    seen = layout(mamba, input_ids=IDS)
    assert not seen.towers
    assert seen.refusals and "without a softmax" in seen.refusals[0].reason
    plain = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    assert not observe(plain, lambda: plain(torch.randn(2, 6)), examples=2).refusals


def test_a_shared_module_is_as_many_layers_as_it_runs() -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_size=10,
        intermediate_size=14,
        embedding_size=6,
        vocab_size=31,
    )
    tower = layout(AlbertModel(config).eval(), input_ids=IDS).towers["language"]
    assert list(tower.sites) == [0, 1, 2]
    assert len({site.path for site in tower.sites.values()}) == 1


class Hybrid(nn.Module):
    """Attention in blocks 1 and 3 of 5."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [nn.Linear(6, 6), Gated(), nn.Linear(6, 6), Gated(), nn.Linear(6, 6)]
        self.blocks = nn.ModuleList(kinds)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_layers_of_a_hybrid_keep_their_block_index() -> None:
    torch.manual_seed(0)
    (tower,) = layout(Hybrid().eval(), x=torch.randn(2, 5, 6)).towers.values()
    assert list(tower.sites) == [1, 3]
    assert (tower.layers, tower.empty_layers) == (5, [0, 2, 4])


def test_multihead_attention_and_nn_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(12, 3, 2, 2, 14, batch_first=True).eval()
    seen = layout(model, src=torch.randn(2, 7, 12), tgt=torch.randn(2, 5, 12))
    assert list(seen.towers) == ["encoder", "decoder", "cross"]
    assert all(tower.heads == 3 for tower in seen.towers.values())
    assert len(seen.anatomy.projections) == 6
    matrix = seen.anatomy.output_matrix(Site("encoder", 1))
    weight = model.encoder.layers[1].self_attn.out_proj.weight
    assert matrix is not None and torch.equal(matrix.flatten(0, 1), weight.T.detach())


def test_a_kernel_that_cannot_be_seen_into_is_refused_with_what_to_do() -> None:
    from transformers import AttentionInterface

    def opaque(module, query, key, value, mask, scaling=None, **_):
        weights = (query @ key.repeat_interleave(3, 1).mT * scaling).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        return (weights @ value.repeat_interleave(3, 1)).transpose(1, 2), None

    AttentionInterface.register("opaque_kernel", opaque)
    model = tiny.llama()
    model.set_attn_implementation("opaque_kernel")
    seen = layout(model, input_ids=IDS)
    assert not seen.towers
    assert "attn_implementation='opaque_kernel', which cannot be seen into" in (
        seen.refusals[0].reason
    )


class Talking(Gated):
    """Heads mixed after the softmax by weights that may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2, bias=False)
        self.mix.weight.data = torch.tensor([[1.0, -0.5], [0.3, 0.9]])

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        pattern = (query @ key.mT).softmax(-1)
        pattern = self.mix(pattern.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((pattern @ value).transpose(1, 2).flatten(2))


class Sink(Gated):
    """A learned sink takes part of every row."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        scores = nn.functional.pad(query @ key.mT, (0, 1), value=0.5)
        return self.out((scores.softmax(-1)[..., :-1] @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("module", "sums"), [(Gated, "one"), (Sink, "below one"), (Talking, "any")]
)
def test_what_rows_sum_to_is_seen(module: type[nn.Module], sums: str) -> None:
    torch.manual_seed(0)
    seen = layout(module().eval(), x=torch.randn(2, 5, 6))
    assert [site.row_sums for site in seen.sites] == [sums]
