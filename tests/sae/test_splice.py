"""Reconstructions in the running model: against hooks of our own on the output projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_coders import identity, nothing
from torch import Tensor, nn

from probes.capture import capture
from probes.edits import matched_random, zero
from probes.edits.apply import edit, factory_of
from probes.edits.parse import EditTextError, parse_edit
from probes.fingerprint import fingerprint
from probes.heads import Site
from probes.inputs import Batch
from probes.listening import attach
from probes.loading import load
from probes.subject import Subject
from probes.tap import Attached
from sae.coders.coder import Coder
from sae.coders.jump_relu import JumpReLU
from sae.exchange.headscope_folder import save_coder
from sae.splice import ReplacedRows, constant_rows, splice
from tests import tiny_models as tiny
from tests.drawn_coders import batch_of, drawn_coder, redrawn, subject_of

PLACES = [
    ("repeat-lm", "language.L1"),
    ("shapes-vit", "vision.L2"),
    ("shapes-llava", "language.L3"),
    ("shapes-llava", "vision.L1"),
    ("gpt2", "language.L1"),
    ("gqa", "language.L2"),
    ("gpt_oss", "language.L0"),
    ("t5", "encoder.L1"),
    ("t5", "decoder.L1"),
]


def width_of(subject: Subject, site: str) -> int:
    place = next(one for one in subject.layout.sites if str(one.site) == site)
    return place.heads * place.value_width


def hooks_of(subject: Subject) -> int:
    modules = subject.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def logits(subject: Subject, batch: Batch) -> Tensor:
    return subject.forward(batch).logits


@contextmanager
def projected(module: nn.Module, coder: Coder) -> Iterator[None]:
    """What an output projection reads replaced by a hook of torch alone."""

    def hook(_: nn.Module, args: Any) -> Any:
        made = coder(args[0].flatten(0, -2).float())
        return (made.reshape(args[0].shape).to(args[0].dtype), *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(("name", "site"), PLACES)
def test_a_complete_dictionary_changes_nothing_and_an_empty_one_is_zero_ablation(
    name: str, site: str
) -> None:
    subject, batch = subject_of(name), batch_of(name)
    width = width_of(subject, site)
    intact = logits(subject, batch)
    with edit(subject, splice(identity(width, site))) as reports:
        same = logits(subject, batch)
    assert reports[0].fired
    assert (same - intact).abs().max() < 1e-5 * max(1.0, float(intact.abs().max()))
    with edit(subject, splice(nothing(width, site))):
        none = logits(subject, batch)
    with edit(subject, zero(site)):
        expected = logits(subject, batch)
    assert torch.equal(none, expected)
    assert (none - intact).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gpt2", "transformer.h.1.attn.c_proj"),
        ("gqa", "model.layers.1.self_attn.o_proj"),
        ("t5", "decoder.block.1.layer.0.SelfAttention.o"),
    ],
)
def test_as_a_hook_on_the_projection(name: str, path: str) -> None:
    subject, batch = subject_of(name), batch_of(name)
    site = "decoder.L1" if name == "t5" else "language.L1"
    coder = drawn_coder(width_of(subject, site), kind=JumpReLU, start=0.2)
    with edit(subject, splice(coder, site)):
        found = logits(subject, batch)
    with projected(subject.model.get_submodule(path), coder):
        expected = logits(subject, batch)
    assert (found - expected).abs().max() < 1e-5
    assert (found - logits(subject, batch)).abs().max() > 1e-3


def test_only_rows_with_a_role_or_at_a_position() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    site = "language.L2"
    coder, before = drawn_coder(width_of(subject, site)), capture(subject, batch, z=[site]).z(site)
    tokens = batch.tokens["language"]
    image = tokens.has_role("image").reshape(before.shape[:2])
    assert 0 < int(image.sum()) < image.numel()
    made = coder(before.flatten(2).flatten(0, 1)).reshape(before.shape)
    with edit(subject, splice(coder, site, roles="image")):
        after = capture(subject, batch, z=[site]).z(site)
    assert torch.equal(after[~image], before[~image])
    assert torch.allclose(after[image], made[image], atol=1e-5)
    chosen = [int(tokens.starts[0]) + 2, int(tokens.starts[1]) + 30]
    with edit(subject, splice(coder, site, positions=chosen)):
        after = capture(subject, batch, z=[site]).z(site)
    changed = (after != before).flatten(2).any(2)
    assert changed.nonzero().tolist() == [[0, 2], [1, 30]]
    assert torch.allclose(after[1, 30], made[1, 30], atol=1e-5)
    here = [int(tokens.starts[1]) + int(image[1].nonzero()[0, 0]), int(tokens.starts[1])]
    with edit(subject, splice(coder, site, roles="image", positions=here)):
        after = capture(subject, batch, z=[site]).z(site)
    assert int((after != before).flatten(2).any(2).sum()) == int(image.flatten()[here].sum()) == 1


def test_by_default_where_the_coder_was_trained() -> None:
    coder = drawn_coder(8)
    assert splice(coder, "language.L0").roles is None
    coder.about = {"site": "language.L0", "provenance": {"roles": ["image", "text"]}}
    assert splice(coder).roles == ("image", "text")
    assert splice(coder, roles="all").roles is None
    assert splice(coder, roles=["cls"]).roles == ("cls",)


def test_with_its_error_z_stays_and_gradients_go_through_the_coder() -> None:
    coder = drawn_coder(6, 11)
    coder.requires_grad_(True)
    x = torch.randn(2, 3, 2, 3, requires_grad=True)
    made = splice(coder, "language.L0", error=True)
    y = made.new(x.flatten(2).flatten(0, 1))
    assert torch.allclose(y, x.flatten(2).flatten(0, 1), atol=1e-6)
    weights = torch.randn(6, 6)
    (through,) = torch.autograd.grad((y * weights).sum(), x, retain_graph=True)
    plain = coder(x.flatten(2).flatten(0, 1))
    (expected,) = torch.autograd.grad((plain * weights).sum(), x)
    assert torch.allclose(through, expected, atol=1e-6)
    assert not torch.allclose(through.flatten(2).flatten(0, 1), weights, atol=1e-2)
    assert "+ error" in made.label


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    coder, rows = drawn_coder(6, 11), torch.randn(29, 6)
    whole = splice(coder, "language.L0").new(rows)
    # By its module: in the package, the name is the function's.
    monkeypatch.setattr(import_module("sae.splice"), "_BLOCK", 33)
    assert torch.allclose(splice(coder, "language.L0").new(rows), whole, atol=1e-6)


def test_in_generation() -> None:
    subject = subject_of("repeat-lm")
    batch = batch_of("repeat-lm")
    width = width_of(subject, "language.L1")
    intact = subject.generate(batch, 5).ids
    with edit(subject, splice(identity(width, "language.L1"))) as reports:
        same = subject.generate(batch, 5).ids
    assert torch.equal(same, intact)
    assert reports[0].fired >= 5
    with edit(subject, splice(nothing(width, "language.L1"))):
        other = subject.generate(batch, 5).ids
    with edit(subject, zero("language.L1")):
        expected = subject.generate(batch, 5).ids
    assert torch.equal(other, expected)


def test_a_model_in_bfloat16() -> None:
    model = tiny.llama().to(torch.bfloat16)
    subject = Subject(model, tiny.tokenizer("left"))
    batch = subject.prepare(text=["a b c the cat sat", "on a mat"])
    site, width = "language.L1", 60
    before = capture(subject, batch, z=[site]).z(site)
    with edit(subject, splice(identity(width, site))):
        after = capture(subject, batch, z=[site]).z(site)
    assert after.dtype == torch.bfloat16
    # Reconstructed in float32 and rounded once.
    assert torch.equal(after, before)


def test_by_name_from_a_folder(tmp_path: Path) -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder = drawn_coder(12)
    folder = save_coder(coder, tmp_path / "coder", {"site": "language.L1"})
    made = parse_edit(f"splice:coder={folder}")
    assert isinstance(made, ReplacedRows)
    assert (made.heads, made.label) == ("language.L1", "splice(topk, 23 latents)")
    with edit(subject, made):
        found = logits(subject, batch)
    with edit(subject, "splice", coder=coder, site="language.L1"):
        assert torch.equal(found, logits(subject, batch))
    only = parse_edit(f"splice:coder={folder},site=language.L0,roles=text+bos,positions=3+5")
    assert isinstance(only, ReplacedRows)
    assert (only.heads, only.roles) == ("language.L0", ("text", "bos"))
    assert only.positions == {3, 5}
    with pytest.raises(EditTextError, match="nowhere.* does not exist"):
        parse_edit(f"splice:coder={tmp_path / 'nowhere'}")


def _of(coder: Coder, subject: Subject | None, dtype: str = "float32") -> Coder:
    if subject is not None:
        coder.about["subject"] = {
            "name": subject.name,
            "dtype": dtype,
            "fingerprint": fingerprint(subject.model),
        }
    return coder


MADE = {
    "splice": {},
    "ablate_feature": {"latents": 3},
    "scale_feature": {"latents": 3, "factor": 2.0},
    "set_feature": {"latents": 3, "strength": 1.0},
    "steer_feature": {"latents": 3, "amount": 1.0},
}


@pytest.mark.parametrize("name", MADE)
def test_another_model_of_the_same_width_is_refused_unless_it_is_wanted(name: str) -> None:
    mine, batch = subject_of("gpt2"), batch_of("gpt2")
    other = load(redrawn(tiny.gpt2(), seed=4))
    how = {"site": "language.L1", **MADE[name]}
    coder, hooks = _of(drawn_coder(12), mine), hooks_of(other)
    with edit(mine, name, coder=coder, **how):
        logits(mine, batch)
    other_batch = other.prepare(input_ids=batch.tensors["input_ids"])
    with (
        pytest.raises(ValueError, match=r"trained on, '.*', got '.*' in float32 with other we"),
        edit(other, name, coder=coder, **how),
    ):
        raise AssertionError("attached")
    assert hooks_of(other) == hooks
    with (
        pytest.raises(ValueError, match="say `other_model=True` to use the coder on this one"),
        edit(other, matched_random(factory_of(name)(coder=coder, **how))),
    ):
        raise AssertionError("attached")
    # Wanted, or not known whose it is.
    with edit(other, name, coder=coder, other_model=True, **how):
        wanted = logits(other, other_batch)
    with edit(other, name, coder=drawn_coder(12), **how):
        assert torch.equal(wanted, logits(other, other_batch))


def test_other_weights_of_the_same_model_are_refused_and_named() -> None:
    model = redrawn(tiny.gpt2(), seed=5)
    subject = load(model)
    coder = _of(drawn_coder(12), subject, dtype="bfloat16")
    spliced = splice(coder, "language.L1")
    with edit(subject, spliced) as reports:
        subject.forward(subject.prepare(input_ids=batch_of("gpt2").tensors["input_ids"]))
    assert reports[0].fired
    next(model.parameters()).data.mul_(1.5)
    with pytest.raises(ValueError, match=r"' in bfloat16, got '.*' in float32 with other weights"):
        spliced.on(subject)


def test_weights_that_are_out_of_memory_are_not_called_other_ones() -> None:
    subject = load(redrawn(tiny.gpt2(), seed=5))
    spliced = splice(_of(drawn_coder(12), subject), "language.L1")
    name, moved = next(iter(subject.model.named_parameters()))
    parent, _, own = name.rpartition(".")
    away = torch.nn.Parameter(moved.detach().to("meta"))
    setattr(subject.model.get_submodule(parent), own, away)
    with pytest.raises(ValueError, match="float32 with weights that are not all in memory to be"):
        spliced.on(subject)


def test_the_model_is_looked_at_once_and_not_in_every_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    coder, asked = _of(drawn_coder(12), subject), []

    def counted(model: nn.Module) -> str:
        asked.append(model)
        return fingerprint(model)

    monkeypatch.setattr("sae.same_model.fingerprint", counted)
    with edit(subject, splice(coder, "language.L1")):
        for _ in range(5):
            logits(subject, batch)
    assert len(asked) == 1
    with edit(subject, splice(drawn_coder(12), "language.L1")):
        logits(subject, batch)
    assert len(asked) == 1


def test_constants_stand_at_every_row() -> None:
    values = torch.randn(2, 3, 2, 4)
    row = torch.arange(8.0, dtype=torch.float64)
    found = constant_rows("language.L0", row, "mean ablation").apply(values, None)  # type: ignore
    assert torch.equal(found, row.float().reshape(2, 4).expand(2, 3, 2, 4))


def test_hooks_are_gone_after_an_error() -> None:
    subject, batch = subject_of("gpt2"), batch_of("gpt2")
    before = hooks_of(subject)
    with (
        pytest.raises(ValueError, match=r"all heads of language.L1 side by side, 8 wide, got 3 x"),
        edit(subject, splice(identity(8, "language.L1"))),
    ):
        logits(subject, batch)
    assert hooks_of(subject) == before
    with pytest.raises(ValueError, match="`site` of splice must be given"):
        splice(identity(8))
    with pytest.raises(ValueError, match="`roles` must be some of .* got words"):
        splice(identity(8), "language.L1", roles="words")


def test_a_coder_on_another_device_than_the_layer() -> None:
    """Meta tensors stand for an accelerator: what is made elsewhere must come back to z's."""
    made = ReplacedRows("language.L0", "elsewhere", 8, lambda rows: torch.ones(rows.shape))
    values = torch.empty(2, 3, 2, 4, device="meta", dtype=torch.bfloat16)
    found = made.apply(values, None)  # type: ignore[arg-type]
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.bfloat16, values.shape)


def test_positions_are_the_prompts_own_while_generating() -> None:
    subject, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    site, heard = "language.L1", dict[int, Tensor]()
    coder, starts = drawn_coder(width_of(subject, site)), batch.tokens["language"].starts
    # Flat, the third row's fifth position lies among what the second generates when rows grow.
    chosen = int(starts[2]) + 4

    def run(*edits: Any) -> Tensor:
        heard.clear()
        keep = Attached(
            frozenset([Site("language", 1)]), on_z=lambda _, z, step: heard.update({step: z})
        )
        with edit(subject, *edits), attach(subject, keep):
            subject.generate(batch, 6)
        return torch.cat([heard[step].flatten(2) for step in sorted(heard)], dim=1)

    before, after = run(), run(splice(coder, site, positions=chosen))
    prompt = batch.tokens["language"].lengths[0]
    changed = (after[:, :prompt] != before[:, :prompt]).any(2)
    assert changed.nonzero().tolist() == [[2, 4]]
    # Layer 1 is the last one: a change at one position reaches no later one but by its word.
    assert torch.equal(after[:2], before[:2])
