"""VHR against a loop that runs every prompt alone, once more for every layer."""

from __future__ import annotations

import math
import statistics

import pytest
import tiny_models
import torch
from planting import scene

import headscope as hs
from analysis.vision.methods.vhr import vhr
from probes.edits.matched_random import matched_random
from probes.heads import Head, Site
from probes.inputs import Example, InputError
from probes.subject import Subject

TEXTS = ["a b <image> c d", "<image> the cat sat on a mat . ?", "e <image>"]
EVERYWHERE = ((0.0, 1.0),)
HEADS, WIDTH = 6, 10


def _subject():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor(), name="tiny")
    subject.model.generation_config.eos_token_id = None
    with torch.no_grad():  # larger, so that heads differ by more than rounding
        for layer in subject.model.model.language_model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.weight.mul_(12)
    return subject


def _batch(subject, texts=TEXTS, side="left", answers=(None, None, None)):
    examples = [
        Example(str(i), text=t, image=scene(20 + 3 * i, 25, seed=i), answer=answers[i])
        for i, t in enumerate(texts)
    ]
    return subject.prepare(examples=examples, padding_side=side)


class _Loop:
    """One prompt, its two branches run over and over; plain lists and forward hooks."""

    def __init__(self, model, tokenizer, text, pixels, layers, alpha, branches, outliers=True):
        self.model, self.alpha, self.pixels = model, alpha, pixels
        said = text.replace("<image>", "<image> " * 16)
        self.seen = tokenizer(said)["input_ids"]
        self.unseen = tokenizer(text.replace("<image>", ""))["input_ids"]
        self.chosen = {}
        for layer in layers:
            one = self.z(self.seen, pixels, layer, self.chosen)
            scaled = self.chosen if branches == "both" else {}
            other = self.z(self.unseen, None, layer, scaled)
            vhd = [math.dist(a, b) for a, b in zip(one, other, strict=True)]
            loud = [sum(v * v for v in head) for head in other]
            if outliers:
                limit = statistics.mean(vhd) + statistics.stdev(vhd)
                bound = statistics.mean(loud) + statistics.stdev(loud)
                vhd = [
                    0.0 if v > limit and t > bound else v for v, t in zip(vhd, loud, strict=True)
                ]
            self.chosen[layer] = [h for h in range(HEADS) if vhd[h] > statistics.median(vhd)]

    def z(self, ids, pixels, wanted, chosen):
        kept = []
        with self.hooked(chosen, wanted, kept):
            self.logits(ids, pixels)
        last = kept[0][0, -1]
        return [last[WIDTH * h : WIDTH * h + WIDTH].tolist() for h in range(HEADS)]

    def logits(self, ids, pixels):
        tensors = {"input_ids": torch.tensor([ids])}
        if pixels is not None:
            tensors["pixel_values"] = pixels
        with torch.no_grad():
            return self.model(**tensors).logits[0]

    def write(self, count):
        """Greedy text without a cache: the whole text anew for every token."""
        ids, steps = list(self.seen), []
        for _ in range(count):
            with self.hooked(self.chosen):
                steps.append(self.logits(ids, self.pixels)[-1])
            ids.append(int(steps[-1].argmax()))
        return torch.stack(steps)

    def hooked(self, chosen, wanted=None, kept=None):
        from contextlib import ExitStack

        stack = ExitStack()
        for number, layer in enumerate(self.model.model.language_model.layers):

            def hook(module, args, number=number):
                x = args[0].clone()
                if number == wanted:
                    kept.append(args[0].clone())
                for head in chosen.get(number, ()):
                    x[:, :, WIDTH * head : WIDTH * head + WIDTH] *= self.alpha
                return (x,)

            handle = layer.self_attn.o_proj.register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        return stack


def _chosen(found, row):
    return {
        site.layer: [h for h in range(HEADS) if bool(heads[row, h])]
        for site, heads in found.items()
    }


@pytest.mark.parametrize("branches", ["both", "image"])
@pytest.mark.parametrize("outliers", [True, False])
def test_heads_and_text_are_those_of_the_loop(branches, outliers):
    """Three prompts of different lengths in one batch, six query heads on two key heads."""
    subject = _subject()
    batch = _batch(subject)
    method = vhr(1.7, branches, outliers, EVERYWHERE)
    prepared = method.on(subject)
    with hs.edit(subject, _Given(prepared, method.label)) as (report,):
        made = _generated(subject, batch, 5)
    found = prepared.edits[0].chosen_heads
    assert list(found) == [Site("language", layer) for layer in range(3)]
    assert report.touched > 0
    sets = []
    for row, text in enumerate(TEXTS):
        pixels = batch.tensors["pixel_values"][row : row + 1]
        loop = _Loop(
            subject.model, subject.tokenizer, text, pixels, range(3), 1.7, branches, outliers
        )
        assert _chosen(found, row) == loop.chosen
        torch.testing.assert_close(made[row], loop.write(5), atol=2e-4, rtol=1e-3)
        sets.append(loop.chosen)
    assert sets[0] != sets[1] or sets[1] != sets[2], "each example has heads of its own"


class _Given:
    """A method whose edits a test can look into."""

    def __init__(self, prepared, label):
        self.prepared, self.label = prepared, label

    def on(self, subject):
        return self.prepared


def _generated(subject, batch, count, **settings):
    """``[batch step vocabulary]``: next-token logits while writing."""
    kept = []
    handle = subject.model.register_forward_hook(
        lambda module, args, output: kept.append(output.logits[:, -1])
    )
    try:
        subject.generate(batch, count, **settings)
    finally:
        handle.remove()
    return torch.stack(kept[-count:], dim=1)


def test_the_branches_differ_and_so_do_the_outliers():
    """So that the tests above can tell them apart."""
    subject = _subject()
    found = set()
    for seed in range(6):
        pixels = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
        for text in ("a b <image> c d", "<image> j i h"):
            parts = (subject.model, subject.tokenizer, text, pixels, range(3), 1.7)
            plain = _Loop(*parts, "both").chosen
            if plain != _Loop(*parts, "image").chosen:
                found.add("branches")
            if plain != _Loop(*parts, "both", False).chosen:
                found.add("outliers")
    assert found == {"branches", "outliers"}


def test_only_chosen_heads_change_and_the_others_not_by_a_bit():
    subject = _subject()
    batch = _batch(subject)
    plain = hs.capture(subject, batch, z=["language.*"])
    method = vhr(depth=EVERYWHERE)
    prepared = method.on(subject)
    with hs.edit(subject, _Given(prepared, method.label)):
        edited = hs.capture(subject, batch, z=["language.*"])
    heads = prepared.edits[0].chosen_heads[Site("language", 0)]
    old, new = plain.z("language.L0"), edited.z("language.L0")
    for row in range(3):
        for head in range(HEADS):
            factor = 2.0 if heads[row, head] else 1.0
            assert torch.equal(new[row, :, head], factor * old[row, :, head])
    assert 0 < int(heads.sum()) <= 9
    values = torch.randn(3, 4, HEADS, WIDTH)
    values[0, 0, 0, 0] = -0.0
    again = prepared.edits[0]._scaled(values, heads, None)
    kept = ~heads[:, None, :].expand(3, 4, HEADS)
    assert torch.equal(again[kept], values[kept])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("branches", ["both", "image"])
@pytest.mark.parametrize("prompt", ["all", "last"])
def test_reading_an_answer_at_once_is_writing_it(side, branches, prompt):
    subject = _subject()
    method = vhr(1.5, branches, depth=EVERYWHERE, prompt=prompt)
    with hs.edit(subject, method):
        words = {"suppress_tokens": [*range(5), *range(len(subject.tokenizer), 31)]}
        logits = _generated(subject, _batch(subject), 4, **words)
        written = subject.generate(_batch(subject), 4, **words).texts
    answered = _batch(subject, side=side, answers=written)
    with hs.edit(subject, method):
        whole = subject.forward(answered).logits
    for row, start in enumerate(answered.answer_starts):
        torch.testing.assert_close(
            whole[row, start - 1 : start + 3], logits[row], atol=2e-4, rtol=1e-3
        )


def test_prompt_last_leaves_what_stands_before_alone():
    subject = _subject()
    batch = _batch(subject)
    plain = hs.capture(subject, batch, z=["language.L1"]).z("language.L1")
    with hs.edit(subject, vhr(depth=EVERYWHERE, prompt="last")):
        edited = hs.capture(subject, batch, z=["language.L1"]).z("language.L1")
    assert torch.equal(edited[:, :-1], plain[:, :-1]) and not torch.equal(edited, plain)


def test_an_example_does_not_depend_on_its_batch():
    subject = _subject()
    method = vhr(depth=EVERYWHERE)
    with hs.edit(subject, method):
        together = subject.forward(_batch(subject)).logits[:, -1]
        for row in range(3):
            alone = subject.prepare(examples=[_batch(subject).examples[row]])
            single = subject.forward(alone).logits[0, -1]
            torch.testing.assert_close(single, together[row], atol=1e-4, rtol=1e-3)


def test_layers_are_those_of_the_paper_by_depth():
    from probes.depth import sites_near
    from probes.layout import Tower

    def layers(count):
        tower = Tower("language", dict.fromkeys(range(count)), count, "layers.*")
        return [site.layer for site in sites_near(tower, vhr().depth)]

    assert layers(32) == [1, *range(18, 32)]
    assert layers(12) == [0, 7, 8, 9, 10, 11]
    assert layers(4) == [0, 2, 3]
    assert layers(3) == [0, 2]


def test_controls_take_as_many_heads():
    subject = _subject()
    batch = _batch(subject)
    found = {}
    for choose in ("above", "below", "every", "random"):
        method = vhr(depth=EVERYWHERE, choose=choose, outliers=False, seed=3)
        prepared = method.on(subject)
        prepared.before(batch, 0)
        found[choose] = prepared.edits[0].chosen_heads[Site("language", 0)]
    assert found["every"].all()
    assert not (found["above"] & found["below"]).any()
    for choose in ("below", "random"):
        assert torch.equal(found[choose].sum(-1), found["above"].sum(-1))
    assert torch.equal(found["random"][0], found["random"][1])
    assert not torch.equal(found["random"], found["above"])


def test_other_edits_act_in_both_branches_and_controls_are_matched():
    subject = _subject()
    batch = _batch(subject)
    method = vhr(depth=EVERYWHERE)
    prepared = method.on(subject)
    with hs.edit(subject, hs.edits.zero("language.L1H4"), _Given(prepared, "vhr")):
        subject.forward(batch)
    assert not prepared.edits[0].chosen_heads[Site("language", 1)][:, 4].any()
    with hs.edit(subject, matched_random(method, seed=1)) as (report,):
        control = subject.forward(batch).logits
    with hs.edit(subject, method) as (own,):
        edited = subject.forward(batch).logits
    assert report.touched > 0 and own.touched > 0
    assert not torch.allclose(control, edited)
    with hs.edit(subject, vhr(alpha=1.0)) as (nothing,):
        subject.forward(batch)
    assert nothing.fired and not nothing.touched


@pytest.mark.parametrize("branches", ["both", "image"])
def test_beams_of_a_prompt_share_its_heads(branches):
    subject = _subject()
    batch = _batch(subject)
    found = []
    for beams in (2, 1):
        prepared = vhr(branches=branches, depth=EVERYWHERE, prompt="last").on(subject)
        with hs.edit(subject, _Given(prepared, "vhr")):
            written = subject.generate(batch, 3, num_beams=beams).ids
            alone = subject.prepare(examples=[batch.examples[1]])
            assert torch.equal(subject.generate(alone, 3, num_beams=beams).ids[0], written[1])
            subject.generate(batch, 1, num_beams=beams)
        found.append(prepared.edits[0].chosen_heads)
    assert all(torch.equal(found[0][site], found[1][site]) for site in found[0])


def test_capturing_patterns_changes_nothing_and_hears_only_the_users_forward():
    subject = _subject()
    batch = _batch(subject)
    with hs.edit(subject, vhr(depth=EVERYWHERE)):
        plain = subject.forward(batch).logits
        captured = hs.capture(subject, batch, patterns=["language.*"], z=["language.*"])
    torch.testing.assert_close(captured.output.logits, plain, atol=1e-5, rtol=1e-4)
    assert captured.pattern("language.L1").shape[0] == 3


def _hooks(model):
    return [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]


def test_it_leaves_no_trace():
    subject = _subject()
    batch = _batch(subject)
    before, hooks = subject.forward(batch).logits, _hooks(subject.model)
    bare = subject.prepare(text=["a b"], chat_template=False)
    boom = subject.model.model.language_model.layers[2].mlp

    def failing_at(run):
        left = [run]

        def fail(module, args):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        return fail

    for branches, run in [(b, r) for b in ("both", "image") for r in (1, 2, 4)]:
        method = vhr(branches=branches)
        with hs.edit(subject, method):
            subject.generate(batch, 3)
        with pytest.raises(InputError, match="Example '0' has no image"), hs.edit(subject, method):
            subject.generate(bare, 3)
        handle = boom.register_forward_pre_hook(failing_at(run))
        with pytest.raises(KeyboardInterrupt), hs.edit(subject, method):
            subject.generate(batch, 3)
        handle.remove()
        assert torch.equal(subject.forward(batch).logits, before)
    assert _hooks(subject.model) == hooks


def test_a_second_batch_gets_heads_of_its_own():
    subject = _subject()
    one, other = _batch(subject), _batch(subject, ["<image> j", "i <image> h", "g <image> f"])
    method = vhr(depth=EVERYWHERE)
    with hs.edit(subject, method):
        first = subject.forward(one).logits
        second = subject.forward(other).logits
        again = subject.forward(one).logits
    assert torch.equal(first, again)
    with hs.edit(subject, method):
        assert torch.equal(subject.forward(other).logits, second)


def test_what_cannot_be_done_is_one_sentence():
    llama = Subject(tiny_models.llama(), tiny_models.tokenizer(), name="words")
    vit = Subject(tiny_models.vit(), tiny_models.image_processor(20), name="sees")
    for subject, kind in ((llama, "language"), (vit, "vision")):
        sentence = rf"^VHR tells heads apart .* '{subject.name}' is a {kind} model\. Choose a model"
        with pytest.raises(ValueError, match=sentence), hs.edit(subject, vhr()):
            pass
    subject = _subject()
    batch = _batch(subject)
    with (
        pytest.raises(ValueError, match="must look at a prompt before|the model was called alone"),
        hs.edit(subject, vhr()),
        torch.no_grad(),
    ):
        subject.model(**batch.tensors)
    with pytest.raises(ValueError, match=r"`alpha` of vhr must be at least 0, got -1\."):
        vhr(-1)
    with pytest.raises(ValueError, match="`branches` of vhr must be one of both, image, got 't"):
        vhr(branches="text")
    with pytest.raises(ValueError, match="`choose` of vhr must be one of above, below"):
        vhr(choose="best")


def test_it_is_known_by_name_and_says_which_heads_it_may_touch():
    subject = _subject()
    with hs.edit(subject, "vhr", alpha=3) as (report,):
        subject.forward(_batch(subject))
    assert report.label == "vhr(alpha=3)"
    assert Head("language", 0, 5) in report.heads and Head("language", 1, 0) not in report.heads
    labels = [vhr().label, vhr(1.5, "image").label, vhr(choose="every").label]
    assert labels == [
        "vhr(alpha=2)",
        "vhr(alpha=1.5, branches=image)",
        "vhr(alpha=2, choose=every)",
    ]
