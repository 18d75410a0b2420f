"""Gaze maps by plain loops, and what they refuse; flow over depth from a head table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny_models as tiny
import torch
from planting import scene
from torch import Tensor

from analysis.head_table import HeadTable
from analysis.vision.depth import over_depth
from analysis.vision.gaze import Question, saliency
from analysis.vision.gaze_maps import gaze_maps
from probes.capture import capture
from probes.inputs import Batch, Example, InputError
from probes.subject import Subject

CONTENT = [["describe", "cat", "mat"], ["cat"], ["image", "b", "c", "e"]]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llava()), tiny.llava_processor())


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    examples = [
        Example(f"e{i}", text=text, image=scene(20, 20, i + 1))
        for i, text in enumerate(tiny.IMAGE_PROMPTS)
    ]
    return subject.prepare(examples=examples)


def shifts(pattern: Tensor, query: int, image: list[int]) -> list[float]:
    return [max(float(pattern[query, k]) - float(pattern[query - 1, k]), 0.0) for k in image]


def by_loops(pattern: Tensor, words: list[str], content: list[str]) -> tuple[list[float], float]:
    """GIFT's saliency of one layer ``[head query key]`` and its total shift."""
    image = [i for i, word in enumerate(words) if word == "<image>"]
    tokens = [i for i, word in enumerate(words) if i > image[-1] and word in content]
    heads = pattern.shape[0]
    total = [sum(sum(shifts(pattern[h], q, image)) for q in tokens) for h in range(heads)]
    kept = sorted(range(heads), key=lambda h: -total[h])[: heads // 2]
    mean = [
        np.mean([shifts(pattern[h], q, image)[j] for h in kept for q in tokens])
        for j in range(len(image))
    ]
    centre, spread = np.mean(mean), np.std(mean, ddof=1)
    clipped = np.clip(mean, centre - 3 * spread, centre + 3 * spread)
    stretched = (clipped - clipped.min()) / (clipped.max() - clipped.min())
    return stretched.tolist(), float(np.mean(total))


def test_maps_equal_their_loops(subject: Subject, batch: Batch) -> None:
    tokens = batch.tokens["language"]
    found = gaze_maps(subject, batch, layer=1)
    captured = capture(subject, batch, patterns="language.*")
    for row, gaze in enumerate(found):
        begin = int(tokens.starts[row])
        words = list(tokens.text[begin : int(tokens.starts[row + 1])])
        pattern = captured.pattern("language.L1")[row]
        expected, total = by_loops(pattern, words, CONTENT[row])
        torch.testing.assert_close(
            gaze.accumulated, torch.tensor(expected).float(), atol=1e-4, rtol=0
        )
        assert gaze.totals[1] == pytest.approx(total, abs=1e-5)
        assert [word.text for word in gaze.words if word.content] == CONTENT[row]
        assert (tokens.role[gaze.positions] == tokens.role[gaze.positions[0]]).all()
        frame = gaze.to_frame(tokens)
        assert len(frame) == 16 * len(gaze.words)
        spots = frame[frame["place"] == 0][["row", "column"]].to_numpy().tolist()
        assert spots == [[place // 4, place % 4] for place in range(16)]


def test_a_word_has_the_map_of_its_tokens_over_the_kept_heads(
    subject: Subject, batch: Batch
) -> None:
    gaze = gaze_maps(subject, batch, layer=2)[0]
    pattern = capture(subject, batch, patterns="language.L2").pattern("language.L2")[0]
    tokens = list(batch.tokens["language"].text[: pattern.shape[-1]])
    image = [i for i, word in enumerate(tokens) if word == "<image>"]
    content = [i for i, w in enumerate(tokens) if i > image[-1] and w in CONTENT[0]]
    total = [sum(sum(shifts(pattern[h], q, image)) for q in content) for h in range(6)]
    kept = sorted(range(6), key=lambda h: -total[h])[:3]
    on = tokens.index("on")
    expected = np.mean([shifts(pattern[h], on, image) for h in kept], axis=0)
    where = [word.text for word in gaze.words].index("on")
    np.testing.assert_allclose(gaze.by_word[where].numpy(), expected, atol=1e-6)


def test_without_a_layer_the_one_that_shifts_most_is_taken(subject: Subject, batch: Batch) -> None:
    found = gaze_maps(subject, batch)
    sums = {layer: sum(gaze.totals[layer] for gaze in found) for layer in range(3)}
    assert {gaze.layer for gaze in found} == {max(sums, key=lambda layer: sums[layer])}
    with pytest.raises(ValueError, match="`layer` must be one of language, which has 0, 1, 2"):
        gaze_maps(subject, batch, layer=7)


def test_saliency_by_hand() -> None:
    # Head 1 shifts most (0.9 against 0.3): of two heads it alone is kept.
    layer = torch.tensor([[[0.1, 0.1, 0.1]], [[0.6, 0.0, 0.3]]])
    assert saliency([layer]).tolist() == pytest.approx([1.0, 0.0, 0.5])
    both = saliency([layer], keep=1.0).tolist()
    assert both == pytest.approx([1.0, 0.0, 0.15 / 0.3], abs=1e-6)
    assert saliency([torch.full((4, 3, 5), 0.2)]).tolist() == [0.0] * 5, "a flat map is no map"


def test_outliers_are_cut_at_three_deviations() -> None:
    values = torch.zeros(1, 1, 101)
    values[..., 0], values[..., 1] = 1.0, 0.1
    mean, spread = values.mean(), values.flatten().std()
    cut = mean + 3 * spread
    assert saliency([values])[1] == pytest.approx(float(0.1 / cut), abs=1e-6)


def test_what_cannot_be_followed_is_said(subject: Subject) -> None:
    picture = scene(20, 20, 1)

    def maps(text: str, image: object = picture) -> None:
        gaze_maps(subject, subject.prepare(examples=[Example("x", text=text, image=image)]))

    with pytest.raises(InputError, match="Example 'x': gaze_maps needs a word with content") as one:
        maps("<image> the a ?")
    assert one.value.example_id == "x"
    with pytest.raises(
        InputError, match="Example 'x' must have an image for gaze_maps, it has none"
    ):
        maps("the cat", None)
    with pytest.raises(InputError, match="a question behind its image, and none is found there"):
        maps("the cat <image>")
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    with pytest.raises(ValueError, match="gaze_maps works on the image of a prompt"):
        gaze_maps(language, language.prepare(text="the cat"))
    vit = Subject(tiny.vit(), tiny.image_processor(20))
    with pytest.raises(ValueError, match="must read or write text"):
        gaze_maps(vit, vit.prepare(images=[picture]))


def test_a_question_knows_its_content_tokens() -> None:
    from analysis.vision.asked import AskedWord

    words = (AskedWord("the", (5,), False), AskedWord("umbrella", (6, 8), True))
    assert Question((5, 6, 7, 8), words, (1, 2)).content == [1, 3]


def table(columns: dict[tuple[str, str], list[list[float]]], nulls: float = 0.25) -> HeadTable:
    lines = []
    for (measure, variant), grid in columns.items():
        for layer, heads in enumerate(grid):
            for head, number in enumerate(heads):
                lines.append(
                    {
                        "tower": "language", "layer": layer, "head": head, "measure": measure,
                        "variant": variant, "inputs": "", "value": number, "ci_low": number,
                        "ci_high": number, "n": 2, "null_low": nulls, "null_high": nulls,
                        "unit": "share",
                    }
                )  # fmt: skip
    return HeadTable(pd.DataFrame(lines))


def test_depth_by_hand() -> None:
    seen = [[0.8, 0.4], [0.3, 0.3], [0.2, 0.1]]  # means .6 .3 .15: halved by every layer
    heads = table(
        {
            ("modality_flow", "T->V"): seen,
            ("modality_flow", "output->before"): [[0.1, 0.1], [0.2, 0.2], [0.6, 0.6]],
            ("modality_flow", "output->after"): [[0.5, 0.7], [0.5, 0.5], [0.1, 0.1]],
            ("text_share", "T=all"): [[0.5, 0.5], [0.2, 0.3], [0.1, 0.4]],
        }
    )
    depth = over_depth(heads)
    assert depth.decay == pytest.approx(0.5, abs=1e-9)
    assert depth.layers["T->V"].tolist() == pytest.approx([0.6, 0.3, 0.15])
    # P = .5 and Q = .25: three times the weight per text key.
    assert depth.layers["dominance"].tolist() == pytest.approx([3.0, 1.0, 1.0])
    assert depth.layers["disparity"].tolist() == pytest.approx([2 / 3, 0.0, 0.0])
    expected = np.corrcoef([0.1, 0.2, 0.6], [0.6, 0.5, 0.1])[0, 1]
    assert depth.before_after == pytest.approx(expected)


def test_depth_needs_its_measures() -> None:
    heads = table({("modality_flow", "T->V"): [[0.1]]})
    with pytest.raises(ValueError, match="must hold 'text_share' of language, it does not. Score"):
        over_depth(heads)
