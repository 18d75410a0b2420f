"""Attention against saliency: every part by plain loops, on an image, on an encoder's text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_models as tiny
import torch
from PIL import Image
from planting import scene
from scipy import stats
from torch import Tensor, nn

import headscope as hs
from analysis.importance.readings import ReadingError
from analysis.importance.study import StudyOptions, available_studies
from analysis.progress import Progress
from analysis.tally import Tally
from analysis.vision.answer_score import answer_tokens, log_probabilities
from analysis.vision.occlusion import covered, image_blocks, text_blocks
from analysis.vision.saliencies import OCCLUSION, saliencies
from analysis.vision.saliency import Saliency
from analysis.vision.saliency_maps import attention_maps, groups_of
from analysis.vision.saliency_sources import blocks_of, sources_of
from headscope.scorer import tell_progress
from probes.capture import capture
from probes.inputs import Batch, Example
from probes.subject import Subject
from tests.probes.test_tap import hooks

ANSWERS = ["the cat sat on a mat .", "a mat", "a b cat"]
OBJECTS = [("cat", "mat"), ("mat",), ("dog",)]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llava()), tiny.llava_processor())


@pytest.fixture(scope="module")
def translator() -> Subject:
    return Subject(tiny.t5(), tiny.tokenizer())


def examples() -> list[Example]:
    return [
        Example(
            f"e{i}",
            text=tiny.IMAGE_PROMPTS[i],
            image=bright(i),
            answer=ANSWERS[i],
            objects=OBJECTS[i],
        )
        for i in range(3)
    ]


def bright(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def log_probability(subject: Subject, example: Example) -> list[float]:
    """Of each token of the answer, alone in a batch, from plain logits."""
    batch = subject.prepare(examples=[example])
    with torch.no_grad():
        logits = subject.model(**batch.tensors).logits[0].log_softmax(-1)
    two_sided = "decoder_input_ids" in batch.tensors
    ids = batch.tensors["decoder_input_ids" if two_sided else "input_ids"][0]
    start = batch.answer_starts[0]
    return [float(logits[i - 1, ids[i]]) for i in range(start, len(ids))]


def test_answers_are_scored_token_by_token(subject: Subject) -> None:
    batch = subject.prepare(examples=examples())
    tokens = answer_tokens(batch)
    found = log_probabilities(subject, batch, tokens)
    for row, example in enumerate(examples()):
        mine = found[tokens.example == row].tolist()
        assert mine == pytest.approx(log_probability(subject, example), abs=1e-4)


def by_occlusion(subject: Subject, example: Example) -> np.ndarray:
    """``[patch token]``: paint one patch after the other in the mean colour."""
    pixels = np.asarray(example.image).astype(float)
    colour = pixels.mean((0, 1)).round().astype(np.uint8)
    whole = log_probability(subject, example)
    drops = []
    for patch in range(16):
        painted = np.asarray(example.image).copy()
        row, column = 5 * (patch // 4), 5 * (patch % 4)
        painted[row : row + 5, column : column + 5] = colour
        hidden = Example(example.id, text=example.text, image=painted, answer=example.answer)
        drops.append(np.array(whole) - np.array(log_probability(subject, hidden)))
    return np.array(drops)


def by_embedding(subject: Subject, example: Example, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Gradient norm and ``|gradient . input|`` at every patch's embedding, written out."""
    batch = subject.prepare(examples=[example])
    model, tensors = subject.model, batch.tensors
    ids = tensors["input_ids"]
    with torch.no_grad():
        words = model.get_input_embeddings()(ids)
        seen = model.model.get_image_features(tensors["pixel_values"]).pooler_output
        seen = torch.cat(list(seen)) if isinstance(seen, (list, tuple)) else seen.flatten(0, -2)
        embeds = words.masked_scatter((ids == 4)[..., None], seen)
    embeds.requires_grad_()
    out = model.model.language_model(inputs_embeds=embeds).last_hidden_state
    logits = model.lm_head(out)[0].log_softmax(-1)
    start = batch.answer_starts[0]
    total = sum(logits[start + t - 1, ids[0, start + t]] for t in tokens)
    (gradient,) = torch.autograd.grad(total, embeds)
    image = (ids[0] == 4).nonzero()[:, 0]
    product = (gradient * embeds.detach()).sum(-1).abs()[0, image]
    return gradient.norm(dim=-1)[0, image], product


def groups_by_hand() -> list[tuple[str, int, list[int]]]:
    """Name, row and tokens within the answer of each group of `examples`."""
    return [
        ("answer", 0, list(range(7))), ("object", 0, [1]), ("object", 0, [5]),
        ("answer", 1, [0, 1]), ("object", 1, [1]), ("answer", 2, [0, 1, 2]),
    ]  # fmt: skip


def test_saliency_and_attention_equal_their_loops(subject: Subject) -> None:
    batch = subject.prepare(examples=examples())
    tokens = answer_tokens(batch)
    groups = groups_of(batch, tokens)
    (source,) = sources_of(subject)
    assert source.tower == "language" and not source.cross
    blocks = [blocks_of(source, batch, row) for row in range(3)]
    assert [of_row.count for of_row in blocks] == [16, 16, 16]
    maps = attention_maps(subject, batch, tokens, groups, source, blocks)
    found = saliencies(subject, batch, tokens, groups, source, blocks)
    patterns = capture(subject, batch, patterns="language.*")
    drops = [by_occlusion(subject, example) for example in examples()]
    assert len(groups) == len(groups_by_hand())
    for index, (name, row, mine) in enumerate(groups_by_hand()):
        assert (groups[index].name, groups[index].row) == (name, row)
        occluded = drops[row][:, mine].sum(1)
        np.testing.assert_allclose(found[index][OCCLUSION].numpy(), occluded, atol=2e-4)
        norm, product = by_embedding(subject, examples()[row], mine)
        torch.testing.assert_close(found[index]["gradient_norm"], norm, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[index]["gradient_input"], product, rtol=1e-3, atol=1e-5)
        start = batch.answer_starts[row]
        image = (batch.tensors["input_ids"][row] == 4).nonzero()[:, 0]
        for site, of_site in maps.items():
            rows = torch.tensor([start + token - 1 for token in mine])
            expected = patterns.pattern(site)[row][:, rows][..., image].mean(1)
            torch.testing.assert_close(of_site[index].float(), expected, atol=1e-6, rtol=1e-4)


def test_the_study_correlates_them(subject: Subject) -> None:
    batch = subject.prepare(examples=examples())
    study = Saliency()
    study.begin(subject, lambda: [batch])
    count = hooks(subject.model)
    scores = study.score(subject, batch)
    assert hooks(subject.model) == count
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    tokens = answer_tokens(batch)
    groups = groups_of(batch, tokens)
    (source,) = sources_of(subject)
    blocks = [blocks_of(source, batch, row) for row in range(3)]
    maps = attention_maps(subject, batch, tokens, groups, source, blocks)
    found = saliencies(subject, batch, tokens, groups, source, blocks)
    assert len(scores.columns) == 2 * 2 * 3 * 18
    for index, column in enumerate(scores.columns):
        by, name = (part.split("=")[1] for part in column.variant.split(","))
        kind = stats.spearmanr if column.measure == "saliency_spearman" else stats.pearsonr
        for row in range(3):
            wanted = [
                kind(maps[site][i][column.head].numpy(), found[i][by].numpy()).statistic
                for i, group in enumerate(groups)
                for site in maps
                if group.row == row and group.name == name and site.layer == column.layer
            ]
            assert float(scores.denominator[row, index]) == len(wanted)
            assert float(scores.numerator[row, index]) == pytest.approx(sum(wanted), abs=1e-5)
    tally = Tally()
    tally.add(scores)
    table = study.finish(subject, lambda: [batch], tally)["saliency"]
    everything = table[(table["layer"] == -1) & (table["measure"] == "saliency_pearson")]
    line = everything[everything["variant"] == "by=occlusion,tokens=answer"].iloc[0]
    means = []
    for i, group in enumerate(groups):
        if group.name == "answer":
            mean = torch.stack([of_site[i] for of_site in maps.values()]).mean((0, 1))
            means.append(stats.pearsonr(mean.numpy(), found[i][OCCLUSION].numpy()).statistic)
    assert line["value"] == pytest.approx(np.mean(means), abs=1e-5) and line["n"] == 3


def test_an_interrupted_study_looks_again(subject: Subject) -> None:
    batch = subject.prepare(examples=examples()[1:2])
    study, other = Saliency(), Saliency()
    for one in (study, other):
        one.begin(subject, lambda: [batch])
    study.score(subject, batch)
    first = study.finish(subject, lambda: [batch], Tally())["saliency"]
    assert first.equals(other.finish(subject, lambda: [batch], Tally())["saliency"])


def test_examples_without_answers_are_answered_by_the_model(subject: Subject) -> None:
    asked = Example("e0", text=tiny.IMAGE_PROMPTS[0], image=bright(0))
    batch = subject.prepare(examples=[asked])
    study = Saliency(max_new_tokens=3)
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    written = subject.generate(batch, 3).texts[0]
    assert len(written.split()) == 3, "words that are read again as the same tokens"
    read = subject.prepare(examples=[replace(asked, answer=written)])
    given = Saliency()
    given.begin(subject, lambda: [read])
    assert study._own and not given._own
    torch.testing.assert_close(scores.values, given.score(subject, read).values, atol=1e-3, rtol=0)


def t5_examples() -> list[Example]:
    return [
        Example("a", text="the cat sat", answer="on a mat"),
        Example("b", text="a b c d e", answer="f g"),
    ]


def test_cross_attention_is_set_against_what_the_encoder_reads(translator: Subject) -> None:
    batch = translator.prepare(examples=t5_examples())
    tokens = answer_tokens(batch)
    groups = groups_of(batch, tokens)
    (source,) = sources_of(translator)
    assert source.tower == "encoder" and source.cross
    blocks = [blocks_of(source, batch, row) for row in range(2)]
    assert [of_row.count for of_row in blocks] == [3, 5]
    found = saliencies(translator, batch, tokens, groups, source, blocks)
    maps = attention_maps(translator, batch, tokens, groups, source, blocks)
    model = translator.model
    for row, example in enumerate(t5_examples()):
        alone = translator.prepare(examples=[example])
        whole = sum(log_probability(translator, example))
        length = alone.tensors["input_ids"].shape[1]
        for token in range(length):
            mask = torch.ones(1, length, dtype=torch.long)
            mask[0, token] = 0
            with torch.no_grad():
                hidden = sum(t5_log_probability(model, alone, {"attention_mask": mask}))
            assert float(found[row][OCCLUSION][token]) == pytest.approx(
                float(whole - hidden), abs=1e-4
            )
        embeds = model.get_input_embeddings()(alone.tensors["input_ids"]).detach()
        embeds.requires_grad_()
        total = sum(t5_log_probability(model, alone, {"inputs_embeds": embeds}))
        (gradient,) = torch.autograd.grad(total, embeds)
        expected = gradient[0].norm(dim=-1)
        torch.testing.assert_close(found[row]["gradient_norm"], expected, rtol=1e-3, atol=1e-5)
        states = states_of(model, alone).requires_grad_()
        normed = model.encoder.final_layer_norm(states)
        total = sum(t5_log_probability(model, alone, {"encoder_outputs": (normed,)}))
        (gradient,) = torch.autograd.grad(total, states)
        expected = gradient[0].norm(dim=-1)
        torch.testing.assert_close(
            found[row]["output_gradient_norm"], expected, rtol=1e-3, atol=1e-5
        )
        twin = type(model)._from_config(model.config, attn_implementation="eager").eval()
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            out = twin(**alone.tensors, output_attentions=True)
        for site, of_site in maps.items():
            count = len(log_probability(translator, example))
            expected = out.cross_attentions[site.layer][0][:, :count].mean(1)
            torch.testing.assert_close(of_site[row].float(), expected, atol=1e-5, rtol=1e-3)


def states_of(model: nn.Module, batch: Batch) -> Tensor:
    """What the encoder's last block gives out."""
    seen: list[Tensor] = []
    block = model.encoder.block[-1]
    handle = block.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.no_grad():
        model(**batch.tensors)
    handle.remove()
    return seen[0].detach().reshape(1, -1, 12)


def t5_log_probability(model: nn.Module, batch: Batch, changes: dict) -> list[Tensor]:
    tensors = {**batch.tensors, **changes}
    if "inputs_embeds" in changes or "encoder_outputs" in changes:
        tensors.pop("input_ids")
    logits = model(**tensors).logits[0].log_softmax(-1)
    ids = batch.tensors["decoder_input_ids"][0]
    return [logits[i - 1, ids[i]] for i in range(1, len(ids))]


def test_patches_are_taken_in_squares_where_they_are_many(subject: Subject) -> None:
    batch = subject.prepare(examples=examples())
    (source,) = sources_of(subject)
    blocks = blocks_of(source, batch, 1, most=5)
    assert blocks.count == 4
    values = torch.arange(16.0)
    squares = values.view(2, 2, 2, 2).sum((1, 3)).flatten()
    assert blocks.summed(values).tolist() == squares.tolist()
    assert blocks.places[1] == (0, (10.0, 0.0, 20.0, 10.0))
    assert text_blocks(torch.arange(7), most=3).block.tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_tiles_belong_to_the_square_that_they_lie_in(subject: Subject) -> None:
    tokens = subject.prepare(examples=examples()[2:]).tokens["language"]
    # The second half of the image's positions is a finer tile over its left half.
    tile, row, column, box = (getattr(tokens, n).clone() for n in ("tile", "row", "column", "box"))
    image = tokens.has_role("image").nonzero()[:, 0]
    late = image[8:]
    tile[late] = 1
    for number, position in enumerate(late.tolist()):
        row[position], column[position] = number // 2, number % 2
        left, top = 5.0 * (number % 2), 2.5 * (number // 2)
        box[position] = torch.tensor([left, top, left + 5, top + 2.5])
    tokens = replace(tokens, tile=tile, row=row, column=column, box=box)
    blocks = image_blocks(tokens, image)
    assert blocks.count == 8, "squares are those of the first tile: two rows of four patches"
    assert blocks.block.tolist()[8:] == [0, 1, 0, 1, 4, 5, 4, 5]


def test_covering_hides_one_place_and_nothing_else() -> None:
    picture = scene(20, 20, 4)
    example = Example("x", image=picture)
    (one,) = covered(example, [(0, (5.0, 0.0, 10.0, 5.0))])
    before, after = np.asarray(picture).astype(int), np.asarray(one.images[0]).astype(int)
    changed = (before != after).any(-1)
    assert changed[0:5, 5:10].mean() > 0.9
    changed[0:5, 5:10] = False
    assert not changed.any() and one.id == "x#0"
    assert after[2, 7].tolist() == before.mean((0, 1)).round().astype(int).tolist()


def test_what_cannot_be_explained_is_said(subject: Subject) -> None:
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    vit = Subject(tiny.vit(), tiny.image_processor(20))
    for other in (language, vit):
        with pytest.raises(ValueError, match=f"Saliency explains .* is a {other.kind} model"):
            Saliency().begin(other, list)
    translator = Subject(tiny.t5(), tiny.tokenizer())
    batch = translator.prepare(examples=[Example("q", text="the cat")])
    study = Saliency()
    study.begin(translator, lambda: [batch])
    with pytest.raises(ReadingError, match="Example 'q' must have an answer to be explained"):
        study.score(translator, batch)


def test_an_example_without_an_image_is_named(subject: Subject) -> None:
    pair = [examples()[0], Example("bare", text="the cat", answer="sat")]
    batch = subject.prepare(examples=pair)
    study = Saliency()
    study.begin(subject, lambda: [batch])
    with pytest.raises(ReadingError, match="Example .bare. must have an image, or") as one:
        study.score(subject, batch)
    assert one.value.example_id == "bare"


def test_it_is_a_study_of_the_vision_section() -> None:
    made = available_studies()["saliency"](StudyOptions(seed=5))
    assert made.name == "saliency" and made.section == "vision" and made.seed == 5  # type: ignore[attr-defined]


def test_the_shape_head_looks_at_what_its_word_depends_on() -> None:
    """On the bundled describer: one head finds the named object, and its answer depends on it."""
    describer = hs.load("shapes-llava")
    names = ["box_mass", "box_share", "pointing_game"]
    heads = hs.score(describer, "scenes", names, limit=20)
    for measure, least in (("box_mass", 0.45), ("box_share", 0.5), ("pointing_game", 0.75)):
        grid = heads.grid(measure, variant="last")
        assert np.unravel_index(np.nanargmax(grid), grid.shape) == (2, 3)
        assert grid[2, 3] > least
        low = heads.grid(measure, variant="last", column="ci_low")
        assert low[2, 3] > 3 * heads.grid(measure, variant="last", column="null_high")[2, 3]
    table = hs.score(describer, "scenes", ["saliency"], limit=4)
    found = table.grid("saliency_pearson", variant="by=occlusion,tokens=object")
    assert np.unravel_index(np.nanargmax(found), found.shape) == (2, 3)


def test_its_passes_over_the_data_are_stages(subject: Subject) -> None:
    seen: list[tuple[str, int, bool]] = []
    batch = subject.prepare(examples=examples()[1:2])
    study = Saliency()
    tell_progress(study, Progress(lambda s: seen.append((s.name, s.done, s.ended)), 1))
    study.begin(subject, lambda: [batch])
    study.finish(subject, lambda: [batch], Tally())
    names = ["saliency: answers", "saliency: mean maps"]
    assert seen == [(name, *step) for name in names for step in ((0, False), (1, False), (1, True))]
