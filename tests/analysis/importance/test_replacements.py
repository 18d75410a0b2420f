"""Which donor position each position takes."""

import gc
import weakref

import numpy as np
import pytest
import tiny_models
import torch

import headscope as hs
from analysis.importance.estimates.attribution_patching import atp
from analysis.importance.estimates.direct import direct
from analysis.importance.leave_one_out import importance, keep_one
from analysis.importance.replacements import (
    matched_positions,
    mean_changes,
    replacement_named,
    resample,
)
from analysis.importance.set_effects import effects_of_sets
from analysis.importance.study import StudyOptions
from probes.head_outputs import head_outputs
from probes.heads import Head, Site
from probes.inputs import Example
from probes.subject import Subject


def _image(seed):
    return np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)


def test_every_image_takes_an_image_of_its_own_examples_donor():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    two = Example("two", images=(_image(0), _image(1)), question="describe", answer="the cat")
    one = Example("one", images=(_image(2),), question="describe", answer="sat")
    batch = subject.prepare(examples=[two, one])
    donors = subject.prepare(examples=[one, two])
    site = Site("vision", 1)
    z, theirs = head_outputs(subject, batch).z[site], head_outputs(subject, donors).z[site]
    index = matched_positions(batch, donors, site, z, theirs)
    rows, length = z.shape[:2]
    assert (rows, theirs.shape[0]) == (3, 3)
    owner_of_donor_row = [0, 1, 1]  # the donors' first example has one image, the second two
    taken = index // length
    for row, example in enumerate([0, 0, 1]):
        assert {owner_of_donor_row[r] for r in taken[row].tolist()} == {example}
    # The class token takes a class token, patches take patches in order.
    assert index[0, 0].item() == 0
    assert torch.equal(index[2] % length, torch.arange(length))


def test_words_take_words_by_number_whatever_side_is_padded():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    batch = subject.prepare(text=["a b c", "the cat sat on a mat"], padding_side="left")
    donors = subject.prepare(text=["d e f g h", "i j"], padding_side="left")
    site = Site("language", 0)
    z, theirs = head_outputs(subject, batch).z[site], head_outputs(subject, donors).z[site]
    index = matched_positions(batch, donors, site, z, theirs)
    ids, other = batch.tensors["input_ids"], donors.tensors["input_ids"]
    mask = batch.tensors["attention_mask"].bool()
    words = subject.tokenizer.convert_ids_to_tokens
    first = words(other.flatten()[index[0][mask[0]]].tolist())
    second = words(other.flatten()[index[1][mask[1]]].tolist())
    plain = [word for word in first if word not in ("<s>", "<pad>")]
    assert plain == ["d", "e", "f"]
    counted_round = [word for word in second if word not in ("<s>", "<pad>")]
    assert counted_round == ["i", "j", "i", "j", "i", "j"]
    assert ids.shape == index.shape


def test_a_mean_pattern_keeps_the_values_and_equals_the_edit_of_the_pattern():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    texts = ["a b c d e", "the cat sat on a", "j i h g f", "c c d d e"]
    batches = [subject.prepare(text=texts[:3]), subject.prepare(text=texts[3:])]
    batches[1] = hs.Batch(
        batches[1].tensors, batches[1].tokens, (Example("3", text=texts[3]),), (-1,)
    )
    study = importance(StudyOptions(ablation="mean_pattern", effects=("logit",)))
    study.begin(subject, lambda: batches)
    scores = study.score(subject, batches[0])
    patterns = [
        hs.capture(subject, b, patterns="language.L1").pattern("language.L1") for b in batches
    ]
    mean = torch.cat(patterns).mean(0)[4]

    def averaged(pattern, place):
        rows, keys = place.tile.rows, place.tile.keys
        return mean[rows, :keys].expand_as(pattern)

    ids = batches[0].tensors["input_ids"]

    def logits():
        found = subject.forward(batches[0]).logits
        return found[:, :-1].gather(2, ids[:, 1:, None])[..., 0].sum(1)

    before = logits()
    with hs.edit(subject, hs.edits.edit_pattern("language.L1H4", averaged)):
        after = logits()
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (1, 4, "importance_logit")
    ]
    expected = (before - after).double()
    torch.testing.assert_close(scores.numerator[:, place], expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-4


def test_a_mean_pattern_of_inputs_of_several_lengths_is_refused():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    study = importance(StudyOptions(ablation="mean_pattern"))
    padded = subject.prepare(text=["a b c d", "a b"])
    with pytest.raises(ValueError, match="must be taken over inputs of one length, .*language"):
        study.begin(subject, lambda: [padded])
    one, other = subject.prepare(text=["a b c d"]), subject.prepare(text=["a b"])
    with pytest.raises(ValueError, match="must be taken over inputs of one length"):
        study.begin(subject, lambda: [one, other])


@pytest.mark.parametrize("name", ["mean_pattern", "uniform"])
def test_packed_images_are_replaced_image_by_image(name):
    """Qwen2-VL runs all images of a batch as one row, and its attention image by image."""
    from small_vlms import qwen2

    subject = Subject(qwen2())
    ids = torch.tensor([[10, 5, 4, 4, 4, 4, 6, 11, 12]])
    torch.manual_seed(3)
    images = torch.randn(3, 16, 150)

    def batch_of(some):
        count = len(some)
        return subject.prepare(
            input_ids=ids.repeat(count, 1),
            pixel_values=some.flatten(0, 1),
            image_grid_thw=torch.tensor([[1, 4, 4]] * count),
            mm_token_type_ids=(ids == 4).long().repeat(count, 1),
        )

    def values(batches):
        study = importance(StudyOptions(ablation=name, effects=("layer_cosine",)))
        study.begin(subject, lambda: batches)
        for batch in batches:
            recorded, _ = study.record(subject, batch)
            yield study.replacement.values(recorded, Site("vision", 0))

    (packed,) = values([batch_of(images)])
    assert packed.shape == (1, 48, 2, 8)
    alone = torch.cat(list(values([batch_of(images[i : i + 1]) for i in range(3)])), dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    assert (alone[:, :16] - alone[:, 16:32]).abs().max() > 1e-3


def _words():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    texts = [
        "a b c d",
        "the cat sat on",
        "j i h g",
        "c c d d",
        "a mat b d",
        "e f g h",
        "on the a b",
    ]
    examples = [Example(str(i), text=text) for i, text in enumerate(texts)]
    return subject, [subject.prepare(examples=examples[:3]), subject.prepare(examples=examples[3:])]


@pytest.mark.parametrize("ablation", ["mean", "mean:role", "mean_pattern", "resample"])
@pytest.mark.parametrize("study", [importance, atp])
def test_no_pass_over_the_data_gives_logits_that_nobody_reads(study, ablation):
    subject, batches = _words()
    made = study(StudyOptions(ablation=ablation, draws=2))
    made.begin(subject, lambda: batches)  # finds out whether the model can leave logits out
    seen = []
    handle = subject.model.lm_head.register_forward_hook(
        lambda m, args, out: seen.append(out.shape[1])
    )
    made.begin(subject, lambda: batches)
    passes = {"mean": 2, "mean:role": 2, "mean_pattern": 2, "resample": 0}[ablation]
    passes += 2 if study is atp else 0  # means of queries and keys
    assert seen == [1] * (1 + passes)  # and one to see what the output is
    if ablation == "resample":
        made.replacement.start(subject, batches[0])
        made.replacement.values(head_outputs(subject, batches[0]), Site("language", 0), 1)
        assert seen == [1] * (1 + passes + 2)
    handle.remove()


@pytest.mark.parametrize("study", [importance, keep_one, atp, direct])
def test_donors_are_held_for_one_draw_at_a_time(study, monkeypatch):
    subject, batches = _words()
    ran = []

    def watched(subject, batch, **settings):
        alive = [number for number, made in enumerate(ran) if made() is not None]
        assert not alive, f"draws {alive} are still held when another is run"
        assert settings == {"device": "cpu"}
        found = head_outputs(subject, batch, **settings)
        ran.append(weakref.ref(found))
        return found

    monkeypatch.setattr(resample, "head_outputs", watched)
    made = study(StudyOptions(ablation="resample", draws=3))
    made.begin(subject, lambda: batches)
    for number, batch in enumerate(batches, start=1):
        made.score(subject, batch)
        gc.collect()
        assert len(ran) == 3 * number  # once per draw, not once per draw and layer


def test_sets_of_heads_run_each_draw_once(monkeypatch):
    subject, batches = _words()
    ran = []

    def counted(*args, **settings):
        ran.append(args)
        return head_outputs(*args, **settings)

    monkeypatch.setattr(resample, "head_outputs", counted)
    study = importance(StudyOptions(ablation="resample", draws=3))
    study.begin(subject, lambda: batches)
    sets = [[Head("language", 0, 1), Head("language", 2, 3)], [], [Head("language", 1, 0)]]
    found = effects_of_sets(subject, lambda: batches, sets, study)
    assert len(ran) == 3 * len(batches)
    alone = effects_of_sets(subject, lambda: batches, sets[2:], study)
    assert found.change.value[2] == alone.change.value[0] != 0
    assert found.change.value[1] == 0


def test_a_resampled_head_is_the_mean_over_runs_with_each_donor():
    subject, batches = _words()
    study = importance(StudyOptions(ablation="resample", draws=2, effects=("logit",)))
    study.begin(subject, lambda: batches)
    batch = batches[1]
    scores = study.score(subject, batch)
    ids = batch.tensors["input_ids"]

    def logits():
        found = subject.forward(batch).logits
        return found[:, :-1].gather(2, ids[:, 1:, None])[..., 0].sum(1).double()

    place = Site("language", 1)
    intact, expected = logits(), torch.zeros(4, dtype=torch.float64)
    for draw in range(2):
        z = study.replacement.values(head_outputs(subject, batch), place, draw)
        with hs.edit(subject, hs.edits.edit_z("language.L1H2", lambda old, at, z=z: z[:, :, [2]])):
            expected += (intact - logits()) / 2
    (column,) = [
        number
        for number, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (1, 2, "importance_logit")
    ]
    torch.testing.assert_close(scores.numerator[:, column], expected, atol=1e-5, rtol=1e-4)
    assert float(expected.abs().min()) > 1e-4


def test_the_mean_change_is_the_mean_over_draws_whatever_comes_first():
    subject, batches = _words()
    found = head_outputs(subject, batches[0])
    replacement = replacement_named("resample", draws=3)
    replacement.begin(subject, lambda: batches)
    replacement.start(subject, batches[0])
    changes = dict(mean_changes(replacement, found, list(found.z)))
    for site, z in found.z.items():
        each = [z - replacement.values(found, site, draw) for draw in range(3)]
        torch.testing.assert_close(changes[site], torch.stack(each).mean(0), atol=1e-6, rtol=1e-5)
    plain = replacement_named("zero")
    for site, change in mean_changes(plain, found, list(found.z)):
        assert torch.equal(change, found.z[site])
