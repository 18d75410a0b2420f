"""Recursive attribution against the formula, gradients with frozen norms, and its own sums."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.capture import capture
from probes.direct.residual_path import PathError
from probes.edits import scale
from probes.edits.apply import edit
from probes.heads import Site
from probes.inputs import Example
from probes.listening import listen
from probes.subject import Subject
from sae.coders.coder import Coder
from sae.coders.gated import Gated
from sae.coders.jump_relu import JumpReLU
from sae.coders.standard import Standard
from sae.coders.topk import TopK
from sae.reading.attribution_tree import AttributionTree, Link, Piece
from sae.reading.direct_attribution import direct_attribution
from sae.reading.pruning import Pruning
from sae.reading.recursive_attribution import recursive_attribution
from sae.reading.value_paths import ValuePaths
from tests import tiny_models as tiny
from tests.drawn_coders import IDS, batch_of, drawn_coder, redrawn, subject_of

EVERYTHING: dict[str, Any] = {"top_k": None, "least_share": 0.0}
PLACES = [
    ("repeat-lm", "language.L1", (1, 11)),
    ("shapes-vit", "vision.L1", (1, 11)),
    ("shapes-llava", "language.L1", (1, -50)),
    ("shapes-llava", "vision.L1", (1, 5)),
    ("gpt2", "language.L1", (0, 5)),
    ("gqa", "language.L2", (0, 5)),
    ("gpt_oss", "language.L1", (1, 4)),
    ("t5", "encoder.L1", (0, 3)),
    ("t5", "decoder.L1", (1, 3)),
    ("t5", "cross.L0", (1, 3)),
]


def coder_at(subject: Subject, site: str, **settings: Any) -> Coder:
    place = next(one for one in subject.layout.sites if str(one.site) == site)
    return drawn_coder(place.heads * place.value_width, **settings)


def pieces_of(piece: Piece) -> Iterator[Piece]:
    yield piece
    for link in piece.links:
        for one in link.pieces:
            yield from pieces_of(one)


def assert_whole(tree: AttributionTree, tolerance: float = 1e-4) -> None:
    """Nothing was pruned, so that what is left out is rounding: everything adds up."""
    for piece in pieces_of(tree.root):
        if piece.followed:
            total = piece.constant + sum(link.score for link in piece.links)
            assert total == pytest.approx(piece.score, abs=tolerance)
            assert piece.left_out_size < 1e-9 and piece.left_out_share == pytest.approx(0, abs=1e-9)
        for link in piece.links:
            if link.followed:
                parts = sum(one.score for one in link.pieces)
                assert parts == pytest.approx(link.score, abs=tolerance)
    assert sum(tree.by_kind.values()) == pytest.approx(tree.root.score)


@pytest.mark.parametrize(("name", "site", "place"), PLACES)
def test_pieces_add_up_to_links_and_links_to_the_pre_activation(
    name: str, site: str, place: tuple[int, int]
) -> None:
    subject, batch = subject_of(name), batch_of(name)
    coder = coder_at(subject, site)
    tree = recursive_attribution(subject, batch, coder, site, 4, place, depth=1, **EVERYTHING)
    z = capture(subject, batch, z=[site]).z(site)[place[0], place[1]]
    expected = coder.pre_activations(z.reshape(1, -1))[0, 4]
    assert tree.root.score == pytest.approx(float(expected), abs=1e-4)
    assert tree.active == (float(coder.encode(z.reshape(1, -1))[0, 4]) != 0)
    assert_whole(tree)
    kinds = {piece.kind for link in tree.root.links for piece in link.pieces}
    assert {"head", "block", "embedding"} <= kinds
    # A piece of several different sizes, not one that holds everything.
    sizes = [abs(p.score) for link in tree.root.links for p in link.pieces if p.kind == "head"]
    assert len(sizes) > 3 and max(sizes) > 1e-3


def test_every_piece_of_gpt2_equals_the_formula() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    model: Any = subject.model
    first, second = model.transformer.h
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            kept[f"{name}.in"] = args[0].detach() if args else torch.empty(0)
            kept[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    modules = {"drop": model.transformer.drop, "proj": first.attn.c_proj, "mlp": first.mlp}
    modules |= {"norm": second.ln_1}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    pattern = capture(subject, batch, patterns=["language.L1"]).pattern("language.L1")
    for handle in handles:
        handle.remove()
    coder, row, query = coder_at(subject, "language.L1"), 1, 6
    tree = recursive_attribution(
        subject, batch, coder, "language.L1", 8, (row, query), depth=1, **EVERYTHING
    )
    stream, norm = kept["norm.in"], second.ln_1
    deviation = (stream.var(-1, unbiased=False) + norm.eps).sqrt()
    values = second.attn.c_attn.weight[:, 24:].unflatten(1, (3, 4))
    weight = coder.encoder[8].reshape(3, 4)
    z = kept["proj.in"].unflatten(-1, (3, 4))
    output = first.attn.c_proj.weight.unflatten(0, (3, 4))
    assert len(tree.root.links) == 3 * (query + 1)
    for link in tree.root.links:
        source = link.source - 7 * row
        attention = pattern[row, link.head, query, source]

        def score(
            added: Tensor, head: int = link.head, source: int = source, by: Tensor = attention
        ) -> float:
            """The card's: attention, centred, over the frozen scale, gain, value map, encoder."""
            centred = (added - added.mean()) / deviation[row, source] * norm.weight
            return float((by * (centred @ values[:, head]) @ weight[head]).detach())

        bias = norm.bias @ values[:, link.head]
        bias = bias + second.attn.c_attn.bias[24:].reshape(3, 4)[link.head]
        expected = {
            "embedding language": score(kept["drop"][row, source]),
            "language.L0 block": score(kept["mlp"][row, source]),
            "language.L0 output bias": score(first.attn.c_proj.bias),
            "constant": float((attention * (bias @ weight[link.head])).detach()),
        }
        for head in range(3):
            expected[f"language.L0H{head}"] = score(z[row, source, head] @ output[head])
        found = {piece.name: piece.score for piece in link.pieces}
        assert found == pytest.approx(expected, abs=1e-4)
        assert all(p.position in (link.source, -1) or p.kind == "constant" for p in link.pieces)


def test_a_head_that_is_followed_is_made_of_what_its_own_values_are_made_of() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_at(subject, "language.L2")
    tree = recursive_attribution(
        subject, batch, coder, "language.L2", 3, (1, 0), depth=3, **EVERYTHING
    )
    assert_whole(tree)
    followed = [p for p in pieces_of(tree.root) if p.kind == "head" and p.followed]
    assert {str(p.site) for p in followed} == {"language.L0", "language.L1"}
    assert set(tree.by_kind) <= {"head", "block", "embedding", "bias", "constant", "left_out"}
    assert tree.by_kind["embedding"] != 0
    # Three layers deep nothing is left that a head wrote: all is traced to embedding and MLPs.
    assert tree.by_kind.get("head", 0.0) == 0
    assert tree.unexplained_share < 1e-4


def test_gradients_with_frozen_norms_and_patterns_give_the_same_head_scores() -> None:
    """Independent: a hand-written layer 1, frozen where the recursion freezes, and autograd."""
    subject, batch = subject_of("gqa"), batch_of("gqa")
    model: Any = subject.model
    layer = model.model.layers[1]
    kept: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda m, a, k: kept.update(stream=(a[0] if a else k["hidden_states"]).detach()),
            with_kwargs=True,
        ),
        model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda m, a: kept.update(z=a[0].detach())
        ),
    ]
    pattern = capture(subject, batch, patterns=["language.L1"]).pattern("language.L1")
    for handle in handles:
        handle.remove()
    coder, row, query = coder_at(subject, "language.L1"), 1, 5
    norm, attention = layer.input_layernorm, layer.self_attn
    scale_of = (kept["stream"].square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    z = kept["z"].clone().requires_grad_(True)
    projection = model.model.layers[0].self_attn.o_proj
    write = nn.functional.linear(z, projection.weight)
    stream = kept["stream"] + (write - write.detach())
    value = attention.v_proj(stream * scale_of * norm.weight).unflatten(-1, (2, 10))
    value = value.repeat_interleave(3, dim=2)
    own = torch.einsum("hk,khw->hw", pattern[row, :, query], value[row])
    pre = (own.flatten() * coder.encoder[6]).sum()
    (gradient,) = torch.autograd.grad(pre, z)
    expected = (gradient * z).detach().unflatten(-1, (6, 10)).sum(-1)[row]
    tree = recursive_attribution(
        subject, batch, coder, "language.L1", 6, (row, query), depth=1, **EVERYTHING
    )
    found = torch.zeros(7, 6)
    for link in tree.root.links:
        for piece in link.pieces:
            if piece.kind == "head":
                assert piece.head is not None
                found[piece.position - 7 * row, piece.head] += piece.score
    assert torch.allclose(found, expected, atol=1e-4)
    assert float(expected.abs().max()) > 0.05


def test_a_double_model_adds_up_to_the_last_digits() -> None:
    subject = Subject(redrawn(copy.deepcopy(subject_of("gpt2").model).double()))
    batch = subject.prepare(input_ids=IDS)
    coder = coder_at(subject, "language.L1").double()
    tree = recursive_attribution(
        subject, batch, coder, "language.L1", 2, (0, 6), depth=2, **EVERYTHING
    )
    assert_whole(tree, 1e-10)


def test_half_precision_adds_up_to_its_own_rounding() -> None:
    whole, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    half = Subject(copy.deepcopy(whole.model).bfloat16(), whole.processor)
    coder = coder_at(whole, "language.L1")
    given = (batch, coder, "language.L1", 6, (0, -1))
    exact = recursive_attribution(whole, *given, depth=1)
    found = recursive_attribution(half, *given, depth=1)
    assert found.root.score == pytest.approx(exact.root.score, abs=0.05)
    assert [li.source for li in found.root.links] == [li.source for li in exact.root.links]


def test_a_key_that_is_put_together_in_place_is_no_obstacle() -> None:
    """Multi-head latent attention writes parts of keys into a new tensor; values stay linear."""
    from tests.parity.language import FAMILIES
    from tests.parity.measure import subject_of as built

    family = next(one for one in FAMILIES if one.name == "deepseek_v3")
    subject, batch = built(family.build(), family.inputs(), family.name)
    coder = coder_at(subject, "language.L1")
    tree = recursive_attribution(subject, batch, coder, "language.L1", 4, (1, 2), depth=1,
                                 **EVERYTHING)  # fmt: skip
    assert_whole(tree)


KINDS: list[tuple[type[Coder], dict[str, Any]]] = [
    (TopK, {}),
    (Standard, {}),
    (Gated, {}),
    (JumpReLU, {"start": 0.2}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_features_of_an_earlier_layer_replace_its_heads_exactly(
    kind: type[Coder], settings: dict[str, Any]
) -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_at(subject, "language.L1")
    earlier = coder_at(subject, "language.L0", kind=kind, seed=9, **settings)
    given: tuple[Any, ...] = (subject, batch, coder, "language.L1", 6, (1, 1))
    plain = recursive_attribution(*given, depth=1, **EVERYTHING)
    split = recursive_attribution(*given, depth=2, coders={"language.L0": earlier}, **EVERYTHING)
    assert_whole(split)
    z = capture(subject, batch, z=["language.L0"]).z("language.L0").flatten(2)
    heads = {(li.head, li.source): li for li in plain.root.links}
    features = 0
    for link in split.root.links:
        before = heads[link.head, link.source]
        wrote = sum(p.score for p in before.pieces if p.kind == "head")
        parts = [p for p in link.pieces if p.kind in ("feature", "error")]
        parts += [p for p in link.pieces if p.name == "language.L0 coder bias"]
        assert sum(p.score for p in parts) == pytest.approx(wrote, abs=1e-4)
        assert not any(p.kind == "head" for p in link.pieces)
        strengths = earlier.encode(z[1, link.source - 7][None])[0]
        active = [p.latent for p in parts if p.kind == "feature" and p.latent is not None]
        assert sorted(active) == strengths.nonzero()[:, 0].tolist()
        features += len(active)
    assert features > 10
    followed = [p for p in pieces_of(split.root) if p.kind == "feature" and p is not split.root]
    assert all(p.followed and p.links for p in followed)
    assert 0 < split.unexplained_share < 1


def test_a_coder_that_reconstructs_leaves_no_error() -> None:
    """One latent per coordinate and sign: strengths are the parts of z, errors are 0."""
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    exact = Standard(12, 24, centred=False)
    with torch.no_grad():
        exact.encoder.copy_(torch.cat([torch.eye(12), -torch.eye(12)]))
        exact.decoder.copy_(exact.encoder)
        exact.encoder_bias.zero_()
        exact.decoder_bias.zero_()
    exact.requires_grad_(False)
    coder = coder_at(subject, "language.L1")
    tree = recursive_attribution(
        subject,
        batch,
        coder,
        "language.L1",
        2,
        (1, 4),
        depth=2,
        coders={Site("language", 0): exact},
        **EVERYTHING,
    )
    assert tree.by_kind["error"] == pytest.approx(0, abs=1e-5)
    assert tree.unexplained_share < 1e-4
    constants = [p.constant for p in pieces_of(tree.root) if p.kind == "feature"][1:]
    assert max(map(abs, constants)) < 1e-5


def test_pruning_keeps_the_largest_and_says_what_it_left_out() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_at(subject, "language.L2")
    given: tuple[Any, ...] = (subject, batch, coder, "language.L2", 3, (1, 6))
    whole = recursive_attribution(*given, depth=1, **EVERYTHING)
    few = recursive_attribution(*given, depth=1, top_k=2, least_share=0.05)
    scores = sorted((abs(li.score) for li in whole.root.links), reverse=True)
    assert [abs(li.score) for li in few.root.links] == pytest.approx(scores[:2])
    lost = sum(scores[2:])
    assert few.root.left_out_size == pytest.approx(lost)
    assert few.root.left_out_share == pytest.approx(lost / sum(scores))
    total = few.root.constant + few.root.left_out + sum(li.score for li in few.root.links)
    assert total == pytest.approx(few.root.score)
    for link in few.root.links:
        assert len(link.pieces) <= 2
        assert all(abs(p.score) >= 0.05 * abs(link.score) for p in link.pieces)
    assert sum(few.by_kind.values()) == pytest.approx(few.root.score)
    assert whole.unexplained_share < 0.01 < few.unexplained_share < 1
    assert Pruning(None, 0.5).kept([1.0, -3.0, 2.0, 0.0], 4.0) == [1, 2]
    assert Pruning(1, 0.0).kept([1.0, -1.0], 0.0) == [0]


def test_the_unexplained_share_of_a_tree_made_by_hand() -> None:
    site = Site("language", 0)
    leaves = (Piece("embedding", "e", 2.0), Piece("error", "x", -1.0))
    link = Link(0, "language", 3, 1.5, leaves, left_out=0.5, left_out_size=3.0)
    other = Link(1, "language", 2, -4.0, followed=False)
    root = Piece(
        "feature", "f", 1.0, "language", 5, site, links=(link, other), constant=3.0,
        left_out=0.5, left_out_size=2.5, followed=True,
    )  # fmt: skip
    tree = AttributionTree(root, True, batch_of("gpt2").tokens)
    by_kind = {"constant": 3.0, "left_out": 1.0, "embedding": 2.0, "error": -1.0, "head": -4.0}
    assert tree.by_kind == pytest.approx(by_kind)
    # Named: constant 3, embedding 2, error 1, head 4; pruned 3 + 2.5.
    assert tree.unexplained_share == pytest.approx((5.5 + 1) / (10 + 5.5))


def test_depth_0_is_the_direct_attribution() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = coder_at(subject, "language.L1")
    tree = recursive_attribution(
        subject, batch, coder, "language.L1", 1, (1, 3), depth=0, **EVERYTHING
    )
    assert len(tree.root.links) == 3 * 4
    assert not any(link.pieces or link.followed for link in tree.root.links)
    assert set(tree.by_kind) == {"head", "constant", "left_out"}


class Bent(nn.Module):
    """A value map that is not linear."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.inner(x))


def test_values_that_are_not_linear_in_the_stream_are_refused() -> None:
    model = tiny.llama()
    model.model.layers[1].self_attn.v_proj = Bent(model.model.layers[1].self_attn.v_proj)
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=IDS)
    coder = coder_at(subject, "language.L1")
    sentence = "The values of language.L1 must be a linear map of a residual stream behind a norm"
    with pytest.raises(PathError, match=sentence):
        recursive_attribution(subject, batch, coder, "language.L1", 1, (1, 3))


class Opaque(Standard):
    """A coder that gives no gradient."""

    def encode(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().encode(x)


def test_a_coder_without_gradients_is_refused() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = coder_at(subject, "language.L1")
    opaque = coder_at(subject, "language.L0", kind=Opaque)
    with pytest.raises(ValueError, match="Opaque must let gradients through to its input"):
        recursive_attribution(
            subject, batch, coder, "language.L1", 1, (1, 3), coders={"language.L0": opaque}
        )


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"least_share": 1.5}, {"depth": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = coder_at(subject, "language.L1")
    with pytest.raises(ValueError, match="`least_share` between 0 and 1"):
        recursive_attribution(subject, batch, coder, "language.L1", 1, (1, 3), **wrong)


def test_the_model_is_left_as_it_was() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_at(subject, "language.L1")
    before = subject.forward(batch).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())
    with edit(subject, scale("language.L0H1", 0.5)):  # an edit of z where nothing is split
        recursive_attribution(subject, batch, coder, "language.L1", 1, (1, 3), depth=1)
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())
    assert hooks == after
    assert torch.equal(before, subject.forward(batch).logits)
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_a_value_that_is_read_across_is_rounding_and_no_fault() -> None:
    """What is left of terms that cancel has no digits: it is compared with the terms.

    In a model without biases, whose first layer reads the embedding alone: no other piece is large.
    """
    subject, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    heard: list[Tensor] = []

    def hear(call: AttentionCall) -> None:
        heard.append(call.value[1, 1, 20].double())

    with listen(subject, batch, hear, [Site("language", 0)]):
        subject.forward(batch)
    coder, value = coder_at(subject, "language.L0"), heard[0]
    slices = coder.encoder.data.unflatten(1, (8, -1))
    row = slices[2, 1].double()
    slices[2, 1] = (row - (row @ value) / (value @ value) * value).float()
    direct = direct_attribution(subject, batch, coder, "language.L0", 2, (1, 30))[0]
    least = float(direct.joint[1, 20].abs())
    assert 0 < least < 1e-7
    given: tuple[Any, ...] = (subject, batch, coder, "language.L0", 2, (1, 30))
    assert_whole(recursive_attribution(*given, depth=1, **EVERYTHING))


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"top_k": None, "least_share": 0.0, "depth": 0}, 0),
        ({"top_k": None, "least_share": 0.0, "depth": 1}, 8 * 4),
        ({"top_k": None, "least_share": 0.0, "depth": 2}, 8 * 4 + 8 * 8 * (1 + 2 + 3 + 4)),
        ({"top_k": 1, "least_share": 0.0, "depth": 2}, 2),
    ],
)
def test_every_link_that_is_split_costs_a_backward_pass(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], passes: int
) -> None:
    """Of two layers of 8 heads, from the fourth position: each head reads it and those before."""
    subject = subject_of("repeat-lm")
    batch = subject.prepare(examples=[Example("a", text="t05 t02 t11 t07 t02")])
    coder = coder_at(subject, "language.L1")
    taken, split = [], ValuePaths.split

    def counted(paths: ValuePaths, *given: Any) -> Any:
        taken.append(given)
        return split(paths, *given)

    monkeypatch.setattr(ValuePaths, "split", counted)
    recursive_attribution(subject, batch, coder, "language.L1", 0, (0, 3), **settings)
    assert len(taken) == passes
