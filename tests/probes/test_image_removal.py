"""Batches without their images, against prompts written by hand and run one by one."""

from __future__ import annotations

import pytest
import small_vlms
import tiny_models
import torch
from packed_batch import packed_batch
from planting import scene
from small_tiled_vlms import gemma3, idefics2, idefics3, internvl, paligemma, smolvlm
from small_tokenizers import word_tokenizer

from probes.image_removal import with_and_without_image, without_image
from probes.image_stand_ins import with_other_pixels
from probes.inputs import Batch, Example, InputError
from probes.subject import Subject
from probes.tokens import ROLES, map_tokens

TEXTS = ["a b <image> c d", "<image> the cat sat on a mat . ?", "<image> e"]


def _subject():
    return Subject(tiny_models.llava(), tiny_models.llava_processor())


def _examples(texts=TEXTS, answers=("f g", "h", "i j a")):
    sizes = [(23, 20), (20, 31), (29, 29)]
    return [
        Example(
            str(index), text=text, image=scene(*sizes[index], seed=index), answer=answers[index]
        )
        for index, text in enumerate(texts)
    ]


def _ids(subject, text):
    return subject.tokenizer(text)["input_ids"]


def test_positions_of_the_image_go_and_everything_else_moves_together():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    removed = without_image(subject, batch)
    words = ["a b c d f g", "the cat sat on a mat . ? h", "e i j a"]
    ids, mask = removed.batch.tensors["input_ids"], removed.batch.tensors["attention_mask"]
    assert ids.shape == (3, 9)
    for row, text in enumerate(words):
        wanted = _ids(subject, text)
        assert ids[row][mask[row].bool()].tolist() == wanted
        assert mask[row].tolist() == [0] * (9 - len(wanted)) + [1] * len(wanted)
        positions = removed.batch.tensors["position_ids"][row]
        assert positions.tolist() == [0] * (9 - len(wanted)) + list(range(len(wanted)))
    assert removed.batch.answer_starts == (7, 8, 6)
    assert sorted(removed.batch.tensors) == ["attention_mask", "input_ids", "position_ids"]
    old = batch.tensors["input_ids"]
    for row in range(3):
        for position in range(old.shape[1]):
            new = int(removed.kept[row, position])
            gone = (
                int(old[row, position]) == 4 or not batch.tensors["attention_mask"][row, position]
            )
            assert (new == -1) == gone
            assert gone or ids[row, new] == old[row, position]
    tokens = removed.batch.tokens["language"]
    assert [ROLES[role] for role in tokens.role[:9].tolist()] == ["pad"] * 3 + ["text"] * 6
    assert tokens.text[3:9] == ("a", "b", "c", "d", "f", "g")
    assert list(removed.batch.tokens.towers) == ["language"]
    assert all(not example.pictures for example in removed.batch.examples)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_model_says_what_it_says_to_the_text_alone(side):
    subject = _subject()
    batch = subject.prepare(examples=_examples(), padding_side=side)
    removed = without_image(subject, batch)
    logits = subject.forward(removed.batch).logits
    for row, text in enumerate(["a b c d f g", "the cat sat on a mat . ? h", "e i j a"]):
        alone = subject.model(input_ids=torch.tensor([_ids(subject, text)])).logits[0].detach()
        real = removed.batch.tensors["attention_mask"][row].bool()
        torch.testing.assert_close(logits[row][real], alone, atol=2e-5, rtol=1e-4)
    assert bool(removed.batch.tensors["attention_mask"][2, -1]) == (side == "left")


def test_neither_the_batch_nor_the_model_is_touched():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    before = {name: value.clone() for name, value in batch.tensors.items()}
    logits = subject.forward(batch).logits
    for how in ("delete", "blank", "noise"):
        subject.forward(without_image(subject, batch, how).batch)
    assert batch.tensors.keys() == before.keys()
    assert all(torch.equal(batch.tensors[name], before[name]) for name in before)
    assert torch.equal(subject.forward(batch).logits, logits)


def _agrees_with_text_alone(subject, batch, texts):
    removed = without_image(subject, batch)
    logits = subject.forward(removed.batch).logits
    for row, text in enumerate(texts):
        ids = torch.tensor([subject.tokenizer(text)["input_ids"]])
        real = removed.batch.tensors["attention_mask"][row].bool()
        assert removed.batch.tensors["input_ids"][row][real].tolist() == ids[0].tolist()
        alone = subject.model(input_ids=ids).logits[0].detach()
        torch.testing.assert_close(logits[row][real], alone, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("make", [small_vlms.qwen2, small_vlms.qwen2_5, small_vlms.qwen3])
def test_qwen_loses_the_tokens_around_its_image_and_counts_positions_anew(make):
    tokenizer = word_tokenizer("<image>", "<start>", "<end>", "<video>")

    def prompt(counts):
        return [
            f"<unk> <start> {'<image> ' * n}<end> {t}"
            for n, t in zip(counts, ("what is", "this"), strict=True)
        ]

    subject, batch = packed_batch(make(), tokenizer, prompt)
    _agrees_with_text_alone(subject, batch, ["<unk> what is", "<unk> this"])
    assert not without_image(subject, batch).batch.tensors["mm_token_type_ids"].any()


@pytest.mark.parametrize(
    "make", [idefics3, smolvlm, internvl, gemma3, paligemma, lambda: idefics2(True)]
)
def test_tiled_models_run_without_their_tiles(make):
    torch.manual_seed(5)
    case = make()
    case.model.eval()
    images = [scene(170, 80), scene(90, 100)]
    made = case.tensors(images)
    tokenizer = word_tokenizer("<image>")
    subject = Subject(case.model, tokenizer)
    subject.layout_for(made, 2)
    sizes = tuple(image.size for image in images)
    examples = (Example("0"), Example("1"))
    batch = Batch(made, case.map(images, made), examples, (-1, -1), sizes, (0, 1))
    _agrees_with_text_alone(subject, batch, ["what is this"] * 2)
    logits = subject.forward(batch).logits
    for how in ("blank", "noise"):
        removed = without_image(subject, batch, how, seed=3)
        other = subject.forward(removed.batch).logits
        assert other.shape == logits.shape and not torch.allclose(other, logits, atol=1e-4)


def test_rows_and_frames_of_an_image_go_and_the_users_line_breaks_stay():
    tokenizer = word_tokenizer("<image>", "<fake>", "<row_1_col_1>", "<row_1_col_2>", "[INST]")
    subject = Subject(tiny_models.llava(), tokenizer)
    subject.model.config.fake_image_token_id = 5
    text = "[INST] what <fake> <row_1_col_1> <image> <image> \n <fake> <row_1_col_2> <image> "
    text += "<fake> \n is"
    ids = torch.tensor([[1, *(tokenizer.convert_tokens_to_ids(w) for w in text.split(" "))]])
    tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tensors["pixel_values"] = torch.randn(1, 3, 20, 20)
    tokens = map_tokens(
        subject.model, tokenizer, tensors, ["language"], tokenizer=tokenizer, image_sizes=[(20, 20)]
    )
    batch = Batch(tensors, tokens, (Example("0"),), (-1,))
    left = without_image(subject, batch).batch.tensors["input_ids"][0]
    assert tokenizer.convert_ids_to_tokens(left.tolist()) == ["<s>", "[INST]", "what", "\n", "is"]


def test_newlines_of_any_resolution_go_too():
    model, processor = small_vlms.llava_next()
    subject = Subject(model, processor)
    examples = [
        Example("0", text="<image> what is this", image=scene(80, 60)),
        Example("1", text="what <image> is", image=scene(30, 90)),
    ]
    batch = subject.prepare(examples=examples)
    assert bool(batch.tokens["language"].has_role("special").any())
    _agrees_with_text_alone(subject, batch, ["what is this", "what is"])


def test_a_blank_image_is_the_processors_mean_colour():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    removed = without_image(subject, batch, "blank")
    assert torch.equal(removed.batch.tensors["pixel_values"], torch.zeros(3, 3, 20, 20))
    mean = subject.image_processor.image_mean
    level = [round(255 * value) for value in mean]
    grey = torch.tensor(level, dtype=torch.uint8).expand(20, 20, 3).numpy()
    shown = subject.prepare(examples=[Example("0", text=TEXTS[0], image=grey)])
    torch.testing.assert_close(
        shown.tensors["pixel_values"], torch.zeros(1, 3, 20, 20), atol=0.01, rtol=0
    )
    assert torch.equal(removed.kept, torch.arange(removed.kept.shape[1]).expand(3, -1))
    assert removed.batch.answer_starts == batch.answer_starts
    subject.image_processor.do_normalize = False
    plain = without_image(subject, batch, "blank").batch.tensors["pixel_values"]
    torch.testing.assert_close(plain[1, :, 3, 7], torch.tensor(mean))


def test_noise_has_the_spread_of_the_image_and_depends_on_seed_and_example_alone():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    pixels = batch.tensors["pixel_values"]
    pixels[1] *= torch.tensor([1.0, 3.0, 7.0])[:, None, None]
    noise = without_image(subject, batch, "noise", seed=3).batch.tensors["pixel_values"]
    for picture, drawn in zip(pixels, noise, strict=True):
        for channel in range(3):
            spread = picture[channel].std()
            assert abs(drawn[channel].mean() - picture[channel].mean()) < 0.25 * spread
            assert 0.85 < drawn[channel].std() / spread < 1.15
    both = torch.stack([pixels[0, 1].flatten(), noise[0, 1].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2
    again = without_image(subject, batch, "noise", seed=3).batch.tensors["pixel_values"]
    other = without_image(subject, batch, "noise", seed=4).batch.tensors["pixel_values"]
    assert torch.equal(noise, again) and not torch.allclose(noise, other)
    alone = subject.prepare(examples=_examples()[2:])
    single = without_image(subject, alone, "noise", seed=3).batch.tensors["pixel_values"]
    torch.testing.assert_close(single[0], noise[2])
    assert not torch.allclose(noise[0], noise[2])


def test_packed_noise_repeats_the_frame_of_a_still_image():
    tokenizer = word_tokenizer("<image>", "<start>", "<end>", "<video>")

    def prompt(counts):
        return ["<image> " * n for n in counts]

    subject, batch = packed_batch(small_vlms.qwen2(), tokenizer, prompt)
    noise = with_other_pixels(subject, batch, "noise", 0)["pixel_values"]
    assert noise.shape == batch.tensors["pixel_values"].shape
    frames = noise.reshape(len(noise), 3, 2, 25)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    assert not torch.equal(frames[:, 0], frames[:, 1])


def test_filling_canvases_stay_empty():
    case = idefics3()
    images = [scene(170, 80), scene(90, 100)]
    made = case.tensors(images)
    batch = Batch(made, case.map(images, made), (Example("0"), Example("1")), (-1, -1))
    subject = Subject(case.model.eval(), word_tokenizer("<image>"))
    empty = (made["pixel_values"] == 0).flatten(2).all(-1)
    assert bool(empty.any()) and not bool(empty.all())
    for how in ("blank", "noise"):
        new = with_other_pixels(subject, batch, how, 0)["pixel_values"]
        assert torch.equal((new == 0).flatten(2).all(-1), empty)
        assert how == "noise" or float(new.abs().max()) < 1e-5


def test_what_cannot_be_done_is_one_sentence():
    subject = _subject()
    words = subject.prepare(text="a b c", chat_template=False)
    with pytest.raises(InputError, match=r"^Example '0' has no image, so there is none") as caught:
        without_image(subject, words)
    assert caught.value.example_id == "0"
    mixed = subject.prepare(
        examples=[Example("x", text="<image> a", image=scene(20, 20)), Example("y", text="b")]
    )
    for how in ("delete", "blank"):
        with pytest.raises(InputError, match=r"^Example 'y' has no image"):
            without_image(subject, mixed, how)
    llama = Subject(tiny_models.llama(), tiny_models.tokenizer(), name="words")
    with pytest.raises(InputError, match=r"'words' is a language model\. Choose"):
        without_image(llama, llama.prepare(text="a b"))
    vit = Subject(tiny_models.vit(), tiny_models.image_processor(20), name="sees")
    with pytest.raises(InputError, match="'sees' is a vision model"):
        without_image(vit, vit.prepare(images=[scene(20, 20)]))
    with pytest.raises(ValueError, match=r"^`how` must be one of delete, blank, noise, got 'cut'"):
        without_image(subject, words, "cut")


def test_models_that_need_their_image_say_so_and_take_another_one():
    from parity.multimodal import FAMILIES

    named = {family.name: family for family in FAMILIES}
    said = {
        "mllama": r"reads its image by attention of its own \(cross\).*how='blank'",
        "blip_2": "^Blip2ForConditionalGeneration does not run without an image",
        "git": "No position of the text of GitForCausalLM is known to be its image's",
    }
    for name, sentence in said.items():
        subject = Subject(named[name].build().eval(), name=name)
        batch = subject.prepare(**named[name].inputs())
        with pytest.raises(InputError, match=sentence):
            without_image(subject, batch)
        logits = subject.forward(batch).logits
        for how in ("blank", "noise"):
            other = subject.forward(without_image(subject, batch, how).batch).logits
            assert other.shape == logits.shape and not torch.allclose(other, logits)


def _rows_agree(subject, batch):
    """One forward of both halves says what a forward of each says."""
    both = with_and_without_image(subject, batch)
    logits = subject.forward(both.batch).logits
    alone = without_image(subject, batch)
    seen, unseen = subject.forward(batch).logits, subject.forward(alone.batch).logits
    count = batch.size
    padding = batch.tokens["language"].has_role("pad").reshape(count, -1)
    torch.testing.assert_close(logits[:count][~padding], seen[~padding], atol=3e-5, rtol=1e-3)
    row, old = (both.kept >= 0).nonzero(as_tuple=True)
    below = logits[count:][row, both.kept[row, old]]
    torch.testing.assert_close(below, unseen[row, alone.kept[row, old]], atol=3e-5, rtol=1e-3)
    assert torch.equal(both.kept >= 0, alone.kept >= 0)
    assert both.batch.tokens["language"].rows == 2 * count == both.batch.size
    return both


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_above_and_their_texts_below_in_one_forward(side):
    subject = _subject()
    batch = subject.prepare(examples=_examples(), padding_side=side)
    both = _rows_agree(subject, batch)
    alone = without_image(subject, batch).batch
    ids = both.batch.tensors["input_ids"]
    for row, start in enumerate(both.batch.answer_starts):
        old = batch if row < 3 else alone
        first = old.tensors["input_ids"][row % 3, old.answer_starts[row % 3]]
        assert ids[row, start] == first
    assert torch.equal(both.batch.tensors["pixel_values"], batch.tensors["pixel_values"])


def test_families_run_prompts_and_their_texts_in_one_forward():
    tokenizer = word_tokenizer("<image>", "<start>", "<end>", "<video>")

    def prompt(counts):
        ends = ("what is", "this")
        return [f"<start> {'<image> ' * n}<end> {t}" for n, t in zip(counts, ends, strict=True)]

    _rows_agree(*packed_batch(small_vlms.qwen2(), tokenizer, prompt))
    _rows_agree(*packed_batch(small_vlms.qwen3(), tokenizer, prompt))
    model, processor = small_vlms.llava_next()
    subject = Subject(model, processor)
    examples = [
        Example("0", text="<image> what is this", image=scene(80, 60)),
        Example("1", text="what <image> is", image=scene(30, 90)),
    ]
    _rows_agree(subject, subject.prepare(examples=examples))
    for make in (idefics3, internvl, gemma3, paligemma, lambda: idefics2(True)):
        torch.manual_seed(5)
        case = make()
        case.model.eval()
        images = [scene(170, 80), scene(90, 100)]
        made = case.tensors(images)
        if make is paligemma:  # as its processor says: all of it may be read by all of it
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])
        subject = Subject(case.model, word_tokenizer("<image>"))
        subject.layout_for(made, 2)
        sizes = tuple(image.size for image in images)
        examples = (Example("0"), Example("1"))
        batch = Batch(made, case.map(images, made), examples, (-1, -1), sizes, (0, 1))
        _rows_agree(subject, batch)


def test_an_image_without_a_word_cannot_be_taken_away():
    subject = _subject()
    ids = torch.full((1, 16), 4)
    pixels = torch.randn(1, 3, 20, 20)
    batch = subject.prepare(input_ids=ids, pixel_values=pixels)
    with pytest.raises(InputError, match="Example '0' must have some text beside its image"):
        without_image(subject, batch)
