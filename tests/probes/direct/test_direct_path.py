"""Direct contributions: each part against the weights, and their sum against the logit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.direct.direct_path import by_source, contributions_to, direct_contributions
from probes.direct.residual_path import PathError
from probes.heads import Site
from probes.listening import listen
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny

IDS = torch.tensor([[1, 5, 6, 7, 8, 5, 6], [1, 9, 10, 11, 12, 9, 10]])
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
READ, CORRECT, WRONG = 5, torch.tensor([9, 4]), torch.tensor([3, 17])


def difference(output: Any) -> Tensor:
    """Correct minus wrong logit, at the read position where there are positions."""
    logits = output if isinstance(output, Tensor) else output.logits
    at = logits[:, READ] if logits.ndim == 3 else logits
    rows = torch.arange(len(at))
    columns = at.shape[-1]
    return at[rows, CORRECT % columns] - at[rows, WRONG % columns]


def redrawn(model: nn.Module, seed: int = 3) -> nn.Module:
    """The model with every parameter drawn anew, so that biases and norms count."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=draw)
        norm = weight.ndim == 1 and name.endswith("weight")
        weight.data.copy_(1 + 0.3 * noise if norm else 0.4 * noise)
    return model


@contextmanager
def seen(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """First input (``name.in``) and output (``name``) of modules, by plain hooks."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            kept[f"{name}.in"] = args[0].detach() if args else torch.empty(0)
            kept[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> None:
    assert one.shape == other.shape
    assert torch.allclose(one, other, rtol=tolerance, atol=tolerance), (one - other).abs().max()


def assert_adds_up(subject: Subject, batch: Any, metric: Any = difference) -> Any:
    found = direct_contributions(subject, batch, metric)
    close(found.total, metric(subject.forward(batch)).float())
    assert found.mismatch < 1e-4
    return found


@pytest.fixture(scope="module")
def gpt2() -> Subject:
    return Subject(redrawn(tiny.gpt2()), tiny.tokenizer("left"))


@pytest.fixture(scope="module")
def llama() -> Subject:
    return Subject(redrawn(tiny.llama()), tiny.tokenizer("left"))


def test_every_part_of_gpt2_equals_the_formula(gpt2: Subject) -> None:
    batch = gpt2.prepare(input_ids=IDS, attention_mask=LEFT)
    model: Any = gpt2.model
    blocks = model.transformer.h
    modules = {f"proj{i}": block.attn.c_proj for i, block in enumerate(blocks)}
    modules |= {f"mlp{i}": block.mlp for i, block in enumerate(blocks)}
    with seen(norm=model.transformer.ln_f, drop=model.transformer.drop, **modules) as kept:
        gpt2.forward(batch)
    norm = model.transformer.ln_f
    stream = kept["norm.in"]
    scale = (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    unembed = model.lm_head.weight[CORRECT] - model.lm_head.weight[WRONG]

    def direct(added: Tensor) -> Tensor:
        """The definition: centred, divided by the scale of the whole stream, unembedded."""
        centred = added - added.mean(-1, keepdim=True)
        return ((centred / scale)[:, READ] * norm.weight * unembed).sum(-1)

    found = direct_contributions(gpt2, batch, difference)
    for layer, block in enumerate(blocks):
        z = kept[f"proj{layer}.in"].unflatten(-1, (3, 4))
        matrix = block.attn.c_proj.weight.unflatten(0, (3, 4))
        site = Site("language", layer)
        for head in range(3):
            expected = direct(z[:, :, head] @ matrix[head])
            close(found.head_sums[site][:, head], expected)
            close(found.heads[site][:, READ, head], expected)
        close(found.biases[site], direct(block.attn.c_proj.bias.expand_as(stream)))
        close(found.mlps[site], direct(kept[f"mlp{layer}"]))
    close(found.embedding["language"], direct(kept["drop"]))
    close(found.constant, unembed @ norm.bias)
    close(found.total, difference(gpt2.forward(batch)))
    assert not found.others and not found.missing


def test_positions_that_are_not_read_contribute_nothing(gpt2: Subject) -> None:
    found = direct_contributions(gpt2, gpt2.prepare(input_ids=IDS), difference)
    heads = found.heads[Site("language", 0)].clone()
    heads[:, READ] = 0
    assert float(heads.abs().max()) == 0


def test_llama_with_shared_keys_equals_the_formula(llama: Subject) -> None:
    batch = llama.prepare(input_ids=IDS, attention_mask=LEFT)
    model: Any = llama.model
    names = {f"proj{i}": layer.self_attn.o_proj for i, layer in enumerate(model.model.layers)}
    with seen(norm=model.model.norm, **names) as kept:
        llama.forward(batch)
    norm = model.model.norm
    rms = (kept["norm.in"].square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    unembed = model.lm_head.weight[CORRECT] - model.lm_head.weight[WRONG]
    found = assert_adds_up(llama, batch)
    for layer, block in enumerate(model.model.layers):
        z = kept[f"proj{layer}.in"].unflatten(-1, (6, 10))
        written = torch.einsum(
            "bqhw,mhw->bqhm", z, block.self_attn.o_proj.weight.unflatten(1, (6, 10))
        )
        expected = ((written / rms[:, :, None])[:, READ] * norm.weight * unembed[:, None]).sum(-1)
        close(found.head_sums[Site("language", layer)], expected)
        close(found.z[Site("language", layer)], z)


def test_plausible_wrong_formulas_are_told_apart(gpt2: Subject) -> None:
    batch = gpt2.prepare(input_ids=IDS)
    found = direct_contributions(gpt2, batch, difference)
    without_bias = found.total - torch.stack(list(found.biases.values())).sum(0)
    assert float((without_bias - found.metric).abs().max()) > 1e-2
    # The scale not frozen: the gradient through the last norm as it is.
    model: Any = gpt2.model
    with seen(norm=model.transformer.ln_f, proj=model.transformer.h[1].attn.c_proj) as kept:
        gpt2.forward(batch)
    stream = kept["norm.in"].clone().requires_grad_()
    logits = model.lm_head(model.transformer.ln_f(stream))
    rows = torch.arange(2)
    value = logits[rows, READ, CORRECT] - logits[rows, READ, WRONG]
    (moving,) = torch.autograd.grad(value.sum(), stream)
    matrix = model.transformer.h[1].attn.c_proj.weight.detach().unflatten(0, (3, 4))
    z = kept["proj.in"].unflatten(-1, (3, 4))
    unfrozen = torch.einsum("bqhw,hwm,bqm->bh", z, matrix, moving)
    exact = found.head_sums[Site("language", 1)]
    assert float((unfrozen - exact).abs().max()) > 1e-2 * float(exact.abs().max())


def test_replacing_z_changes_the_logit_by_what_path_patching_says(gpt2: Subject) -> None:
    """Brute force: a second run in which all other parts are put back and the norm is frozen."""
    batch = gpt2.prepare(input_ids=IDS)
    model: Any = gpt2.model
    blocks, norm = model.transformer.h, model.transformer.ln_f
    parts = {f"attn{i}": b.attn.c_proj for i, b in enumerate(blocks)}
    parts |= {f"mlp{i}": b.mlp for i, b in enumerate(blocks)}
    with seen(norm=norm, **parts) as kept:
        intact = difference(gpt2.forward(batch))
    scale = (kept["norm.in"].var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    draw = torch.Generator().manual_seed(8)
    other = torch.randn(2, 7, 4, generator=draw)
    changed = kept["attn0.in"].unflatten(-1, (3, 4)).clone()
    changed[:, :, 1] = other
    new = blocks[0].attn.c_proj(changed.flatten(-2)).detach()

    def put(name: str) -> Callable[..., Tensor]:
        return lambda *_: new if name == "attn0" else kept[name]

    def frozen(_: nn.Module, args: tuple[Tensor], __: Tensor) -> Tensor:
        x = args[0]
        return (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias

    handles = [module.register_forward_hook(put(name)) for name, module in parts.items()]
    handles.append(norm.register_forward_hook(frozen))
    try:
        patched = difference(gpt2.forward(batch))
    finally:
        for handle in handles:
            handle.remove()
    found = direct_contributions(gpt2, batch, difference)
    site = Site("language", 0)
    lost = ((found.z[site][:, :, 1] - other) * found.gradient[site][:, :, 1]).sum((1, 2))
    close(lost, intact - patched)


def test_a_source_split_sums_to_the_heads(llama: Subject) -> None:
    batch = llama.prepare(input_ids=IDS, attention_mask=LEFT)
    found = direct_contributions(llama, batch, difference)
    site = Site("language", 1)
    split: list[Tensor] = []
    loops: list[tuple[Tensor, Tensor]] = []

    def on_call(call: Any) -> None:
        split.append(by_source(call, found.gradient[site]))
        split.append(by_source(call, found.gradient[site], heads=[4, 2]))
        value = call.value.repeat_interleave(call.heads // call.kv_heads, 1)
        loops.append((call.pattern(), value))

    with listen(llama, batch, on_call, [site]):
        llama.forward(batch)
    whole, some = split
    assert whole.shape == (2, 6, 7, 7)
    close(whole.sum(-1).transpose(1, 2), found.heads[site])
    close(some, whole[:, [4, 2]])
    pattern, value = loops[0]
    for head, query, key in ((4, READ, 3), (0, READ, 5), (5, READ, READ)):
        along = value[1, head, key] @ found.gradient[site][1, query, head]
        close(whole[1, head, query, key], pattern[1, head, query, key] * along)


def test_several_metrics_of_one_forward(llama: Subject) -> None:
    batch = llama.prepare(input_ids=IDS)

    def last(output: Any) -> Tensor:
        return output.logits[:, -1, 6] - output.logits[:, -1].mean(-1)

    both = contributions_to(llama, batch, [difference, last])
    for one, metric in zip(both, (difference, last), strict=True):
        alone = direct_contributions(llama, batch, metric)
        close(one.total, alone.total)
        for site, heads in alone.head_sums.items():
            close(one.head_sums[site], heads)


def test_examples_do_not_mix(llama: Subject) -> None:
    both = direct_contributions(llama, llama.prepare(input_ids=IDS), difference)

    def second(output: Any) -> Tensor:
        return output.logits[:, READ, CORRECT[1]] - output.logits[:, READ, WRONG[1]]

    alone = direct_contributions(llama, llama.prepare(input_ids=IDS[1:]), second)
    for site, heads in alone.head_sums.items():
        close(both.head_sums[site][1:], heads)
    close(both.embedding["language"][1:], alone.embedding["language"])


@pytest.mark.parametrize("name", ["gemma2", "softcap", "neox", "cohere", "granite", "mixtral"])
def test_other_language_models(name: str) -> None:
    import transformers as hf

    common = {"vocab_size": 31, "hidden_size": 48, "intermediate_size": 16}
    common |= {"num_hidden_layers": 2, "num_attention_heads": 6, "max_position_embeddings": 61}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    grouped = common | {"num_key_value_heads": 2}
    made: dict[str, Callable[[], Any]] = {
        "gemma2": lambda: hf.Gemma2ForCausalLM(
            hf.Gemma2Config(**grouped, head_dim=10, final_logit_softcapping=None)
        ),
        "softcap": lambda: hf.Gemma2ForCausalLM(
            hf.Gemma2Config(**grouped, head_dim=10, final_logit_softcapping=2.0)
        ),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**common)),
        "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**grouped, logit_scale=0.3)),
        "granite": lambda: hf.GraniteForCausalLM(
            hf.GraniteConfig(**grouped, residual_multiplier=0.7, logits_scaling=3.0)
        ),
        "mixtral": lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**grouped, num_local_experts=3, num_experts_per_tok=2)
        ),
    }
    subject = Subject(redrawn(made[name]()).eval(), tiny.tokenizer("left"))
    found = assert_adds_up(subject, subject.prepare(input_ids=IDS))
    assert len(found.gradient) == len(found.mlps) == 2 and not found.missing
    assert found.softcaps == ((2.0,) if name == "softcap" else ())
    assert float(found.head_sums[Site("language", 0)].abs().min()) > 1e-6


def test_images_read_at_the_class_token() -> None:
    subject = Subject(redrawn(tiny.vit()))
    batch = subject.prepare(pixel_values=torch.randn(2, 3, 20, 20, generator=_seed(2)))
    found = assert_adds_up(subject, batch)
    heads = found.heads[Site("vision", 1)]
    assert heads.shape == (2, 17, 3)
    assert float(heads[:, 0].abs().min()) > 0 and float(heads[:, 1:].abs().max()) == 0


def test_registers_layer_scale_and_a_classifier_of_class_and_mean() -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    config = Dinov2WithRegistersConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=1, image_size=20,
        patch_size=5, num_labels=7, num_register_tokens=2,
    )  # fmt: skip
    subject = Subject(redrawn(Dinov2WithRegistersForImageClassification(config)).eval())
    batch = subject.prepare(pixel_values=torch.randn(2, 3, 20, 20, generator=_seed(2)))
    found = assert_adds_up(subject, batch)
    heads = found.heads[Site("vision", 0)]
    assert heads.shape == (2, 19, 3)
    assert float(heads[:, [0, *range(3, 19)]].abs().min()) > 0


def test_a_decoder_reads_by_itself_and_across() -> None:
    subject = Subject(redrawn(tiny.t5()))
    batch = subject.prepare(input_ids=IDS, decoder_input_ids=IDS[:, :6])
    found = assert_adds_up(subject, batch)
    towers = {(site.tower, site.layer) for site in found.gradient}
    assert towers == {(tower, layer) for tower in ("decoder", "cross") for layer in (0, 1)}
    assert set(found.mlps) == {Site("decoder", 0), Site("decoder", 1)}
    assert "encoder has no direct path" in found.missing[Site("encoder", 1)]


def test_vision_heads_of_a_llava_have_no_direct_path() -> None:
    subject = load(redrawn(tiny.llava()), tiny.llava_processor())
    ids = torch.tensor([[1, *[4] * 16, 5, 6, 7, 8], [1, *[4] * 16, 9, 10, 11, 12]])
    pictures = torch.randn(2, 3, 20, 20, generator=_seed(4))
    batch = subject.prepare(input_ids=ids, pixel_values=pictures)

    def last(output: Any) -> Tensor:
        return output.logits[:, -1, 9] - output.logits[:, -1, 3]

    found = assert_adds_up(subject, batch, last)
    assert {site.tower for site in found.gradient} == {"language"}
    assert set(found.embedding) == {"language"}
    why = found.missing[Site("vision", 0)]
    assert why.startswith("vision has no direct path: what its heads write reaches the output only")


def test_an_image_vector_of_clip_with_its_length_frozen() -> None:
    subject = Subject(redrawn(tiny.clip()))
    pixels = torch.randn(2, 3, 20, 20, generator=_seed(5))
    batch = subject.prepare(input_ids=IDS, pixel_values=pixels, attention_mask=torch.ones_like(IDS))

    def similarity(output: Any) -> Tensor:
        direction = torch.linspace(-1, 1, 9)
        return torch.nn.functional.normalize(output.image_embeds, dim=-1) @ direction

    found = assert_adds_up(subject, batch, similarity)
    assert {site.tower for site in found.gradient} == {"vision"}


def test_attention_of_torch_itself_whose_projection_is_not_called() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(12, 3, 14, dropout=0.0, norm_first=True)
            self.embed = nn.Embedding(31, 12)
            self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), False)
            self.head = nn.Linear(12, 31)

        def forward(self, input_ids: Tensor) -> Tensor:
            # The sequence stands first, as this class has it by default.
            return self.head(self.encoder(self.embed(input_ids.T))).transpose(0, 1)

    torch.manual_seed(4)
    subject = Subject(redrawn(Model()).eval())
    found = assert_adds_up(subject, subject.prepare(input_ids=IDS))
    assert len(found.gradient) == 2
    heads = next(iter(found.heads.values()))
    assert heads.shape == (2, 7, 3) and float(heads[:, READ].abs().min()) > 0


def test_half_precision_adds_up_roughly() -> None:
    subject = Subject(redrawn(tiny.llama()).bfloat16())
    found = direct_contributions(subject, subject.prepare(input_ids=IDS), difference)
    assert found.mismatch < 5e-2
    exact = Subject(redrawn(tiny.llama()))
    expected = direct_contributions(exact, exact.prepare(input_ids=IDS), difference)
    for site, heads in expected.head_sums.items():
        size = max(float(heads.abs().max()), 0.1)
        assert float((found.head_sums[site] - heads).abs().max()) < 0.1 * size


def test_what_is_not_linear_in_the_stream_is_refused_by_name(llama: Subject) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    def surprise(output: Any) -> Tensor:
        return output.logits.log_softmax(-1)[:, READ, 4]

    with pytest.raises(PathError, match="linear in the residual stream, but `log_softmax` in the"):
        direct_contributions(llama, llama.prepare(input_ids=IDS), surprise)
    config = BertConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=14, num_labels=5,
    )  # fmt: skip
    bert = Subject(BertForSequenceClassification(config).eval())
    with pytest.raises(PathError, match="but `tanh` in bert.pooler.activation stands between"):
        direct_contributions(bert, bert.prepare(input_ids=IDS), difference)


def test_a_stream_that_is_put_into_a_part_of_another_tensor_is_refused() -> None:
    """As Gemma 3n adds each layer's words to three of its four streams."""

    class Beside(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, hidden: Tensor) -> Tensor:
            beside = torch.zeros(2, *hidden.shape)
            beside[1:] += self.norm(hidden)
            return beside[1]

    subject = Subject(redrawn(tiny.llama()))
    model: Any = subject.model
    batch = subject.prepare(input_ids=IDS)
    assert subject.towers
    model.model.norm = Beside(model.model.norm)
    with pytest.raises(PathError, match="`add_` in model.norm puts the residual stream into"):
        direct_contributions(subject, batch, difference)


def test_what_no_part_gave_is_found_by_the_sum(llama: Subject) -> None:
    with pytest.raises(PathError, match="must add up to the metric, they miss it by"):
        direct_contributions(llama, llama.prepare(input_ids=IDS), _shifted(difference))


def _shifted(metric: Any) -> Any:
    """A metric that holds a number which no part of the model gave."""

    def shifted(output: Any) -> Tensor:
        value = metric(output)
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            return value + 3.0

    return shifted


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_left_behind(frozen: bool) -> None:
    subject = Subject(redrawn(tiny.llama()))
    model = subject.model
    batch = subject.prepare(input_ids=IDS)
    assert subject.towers
    model.requires_grad_(not frozen)
    model.train()
    model.get_submodule("model.norm").eval()

    def state() -> list[Any]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [m.training for m in model.modules()]
        grads = [(p.requires_grad, p.grad is None) for p in model.parameters()]
        return [hooks, flags, grads, torch.is_grad_enabled()]

    before = state()
    plain = subject.forward(batch).logits
    direct_contributions(subject, batch, difference)
    assert state() == before

    def broken(output: Any) -> Tensor:
        raise KeyError("of the metric")

    with pytest.raises(KeyError, match="of the metric"):
        direct_contributions(subject, batch, broken)
    assert state() == before

    def fail(*_: Any) -> None:
        raise OSError("in the forward")

    handle = model.get_submodule("model.layers.1.mlp").register_forward_hook(fail)
    with pytest.raises(OSError, match="in the forward"):
        direct_contributions(subject, batch, difference)
    handle.remove()
    assert state() == before
    assert torch.equal(subject.forward(batch).logits, plain)


def test_other_threads_run_the_model_as_it_is(llama: Subject) -> None:
    batch = llama.prepare(input_ids=IDS)
    plain = llama.forward(batch).logits
    seen: list[Tensor] = []

    def metric(output: Any) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(lambda: llama.forward(batch).logits).result())
        return difference(output)

    found = direct_contributions(llama, batch, metric)
    assert torch.equal(seen[0], plain) and not seen[0].requires_grad
    close(found.total, difference(llama.forward(batch)))


@pytest.mark.parametrize("name", ["repeat-lm", "shapes-vit"])
def test_bundled_models(name: str) -> None:
    from probes.bundled import bundled_models
    from probes.readers.bundled_set import read

    subject = load(name)
    examples = list(islice(read(bundled_models()[name].default_set), 3))
    batch = subject.prepare(examples=examples)
    found = assert_adds_up(subject, batch, _last_or_class)
    assert len(found.gradient) == len(subject.layout.sites)


def _last_or_class(output: Any) -> Tensor:
    logits = output.logits
    at = logits[:, -1] if logits.ndim == 3 else logits
    return at[:, 2] - at.mean(-1)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.2-1B"])
def test_heads_equal_those_of_transformer_lens(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    make = tiny.gpt2 if name == "gpt2" else tiny.llama
    subject = Subject(redrawn(make()))
    found = direct_contributions(subject, subject.prepare(input_ids=IDS), difference)
    twin = redrawn(make())
    path = tiny.saved(tmp_path, twin, tiny.tokenizer())
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=twin, tokenizer=AutoTokenizer.from_pretrained(path), device="cpu"
    )
    # Norms folded, as its attribution wants it; value biases left with the heads, as here.
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(IDS)
        heads = cache.stack_head_results(pos_slice=READ)
        expected = cache.logit_attrs(heads, CORRECT, WRONG, pos_slice=READ)
    sites = sorted(found.head_sums)
    close(torch.cat([found.head_sums[site] for site in sites], dim=1), expected.T, 1e-3)
