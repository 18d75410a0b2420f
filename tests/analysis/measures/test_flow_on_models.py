"""The same measures on a random language-vision model with grouped queries, by plain loops."""

from __future__ import annotations

import copy
from collections import defaultdict
from math import log

import numpy as np
import pytest
import tiny_models as tiny
import torch
from planting import scene
from scipy.ndimage import label
from torch import Tensor

from analysis.engine import Engine
from analysis.measures import select_measures
from analysis.scores import BatchScores
from probes.alignment import tokens_while_generating
from probes.inputs import Batch, Example
from probes.listening import attach, listen
from probes.subject import Subject
from probes.tap import Attached
from probes.written_text import continued

NAMES = [
    "modality_dominance", "attention_efficiency", "text_share", "modality_flow", "text_shift",
    "image_concentration", "raster_shift", "spatial_entropy", "gaze_shift", "box_mass", "box_share",
    "box_overlap", "pointing_game",
]  # fmt: skip
CONTENT = {"describe", "cat", "sat", "mat", "image", "b", "c", "d", "e"}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llava()), tiny.llava_processor())


def examples() -> list[Example]:
    boxes = [((0.0, 0.0, 7.0, 12.0), (11.0, 5.0, 20.0, 20.0)), ((5.0, 6.0, 9.0, 9.0),)]
    boxes.append(((2.0, 9.0, 18.0, 19.0),))
    objects = [("cat", "mat"), ("mat",), ("cat",)]
    answers = ["the cat sat on a mat .", "a mat", "a b cat"]
    return [
        Example(
            f"e{index}",
            text=tiny.IMAGE_PROMPTS[index],
            image=scene(20, 20, index + 1),
            answer=answers[index],
            objects=objects[index],
            boxes=boxes[index],
        )
        for index in range(3)
    ]


def scored(subject: Subject, batch: Batch) -> BatchScores:
    engine = Engine(subject.layout, select_measures(NAMES))
    engine.start_batch(batch.tokens, [example.id for example in batch.examples])
    with listen(subject, batch, engine.listener):
        subject.forward(batch)
    return engine.finish_batch()


def eager_patterns(subject: Subject, batch: Batch) -> list[Tensor]:
    model = subject.model
    twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager")
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        return twin.eval()(**batch.tensors, output_attentions=True).attentions


def loops(row: Tensor, words: list[str], start: int, example: Example) -> dict[str, list[float]]:
    """Everything of one head and one example: variants with what they sum up, by plain loops.

    Args:
        row: ``[query key]`` without padding.
        words: the token of each position; ``start``: where the answer begins.
    """
    a, n = row.double().numpy(), len(words)
    image = [i for i in range(n) if words[i] == "<image>"]
    text = [i for i in range(n) if words[i] != "<image>"]
    output = [i for i in range(n) if i >= start]
    before = [i for i in text if i < image[0]]
    after = [i for i in text if i > image[-1] and i < start]
    predicting = [i - 1 for i in output]
    found: dict[str, list[float]] = {}
    first = [0] if words[0] != "<image>" else []
    asked = [i for i in (*before, *after) if i not in first]
    sets = {
        "T=all": text,
        "T=-bos": [i for i in text if i not in first],
        "T=-template": [*first, *asked, *output],
        "T=-output": [i for i in text if i < start],
        "T=question": asked,
    }
    for name, keys in sets.items():
        mass = sum(a[q, k] for q in predicting for k in keys if k <= q)
        count = sum(1 for q in predicting for k in keys if k <= q)
        seen = sum(a[q, k] for q in predicting for k in image)
        pictures = len(image) * len(predicting)
        found[f"modality_dominance {name}"] = [mass / count, seen / pictures]
        both = (mass + seen) / (count + pictures)
        found[f"attention_efficiency {name}"] = [mass / count, both]
        found[f"text_share {name}"] = [mass / (mass + seen), 1]
    reading = [q for q in text if q > image[0]]
    for name, queries, keys in (
        ("T->V", reading, image), ("T->T", reading, text), ("V->V", image, image),
        ("V->T", image, text), ("output->image", predicting, image),
        ("output->before", predicting, before), ("output->after", predicting, after),
        ("output->output", predicting, output), ("after->image", after, image),
        ("after->before", after, before), ("after->after", after, after),
    ):  # fmt: skip
        total = sum(a[q, k] for q in queries for k in keys)
        there = any(k <= q for q in queries for k in keys)
        found[f"modality_flow {name}"] = [total, len(queries) if there else 0]
    for name, early in (("", before), ("no_bos", [i for i in before if i not in first])):
        late = [i for i in after if i not in first]
        if early and late:
            behind = sum(a[q, k] for q in predicting for k in late)
            front = sum(a[q, k] for q in predicting for k in early)
            found[f"text_shift {name}"] = [behind, behind + front]
    weights = [a[start - 1, k] for k in image]
    total = sum(weights)
    ordered = sorted(weights, reverse=True)
    for share in (0.1, 0.05, 0.25, 0.5):
        wanted = share * len(image)
        whole = int(wanted)
        held = sum(ordered[:whole]) + (wanted - whole) * ordered[whole]
        found[f"image_concentration top={share:.0%}"] = [held / total, 1]
    place = [k / (len(image) - 1) for k in range(len(image))]
    found["raster_shift last"] = [sum(w * p for w, p in zip(weights, place, strict=True)), total]
    columns = [sum(a[q, k] for q in text) for k in image]
    moment = sum(c * p for c, p in zip(columns, place, strict=True))
    found["raster_shift text"] = [moment, sum(columns)]
    found["spatial_entropy "] = [entropy(np.array(weights).reshape(4, 4)), 1]
    for group in ("content", "function"):
        drawn = [
            sum(max(a[q, k] - a[q - 1, k], 0.0) for k in image)
            for q in after
            if words[q].isalnum() and (words[q] in CONTENT) == (group == "content")
        ]
        found[f"gaze_shift words={group}"] = [sum(drawn), len(drawn)]
    found |= boxes(a, image, output, words, example)
    return found


def entropy(picture: np.ndarray) -> float:
    excess = np.maximum(picture - picture.mean(), 0)
    regions, count = label(excess > 0, structure=np.ones((3, 3)))
    shares = [excess[regions == i].sum() / excess.sum() for i in range(1, count + 1)]
    return -sum(share * log(share) for share in shares)


def boxes(
    a: np.ndarray, image: list[int], output: list[int], words: list[str], example: Example
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, box in zip(example.objects, example.boxes, strict=True):
        for token in output:
            if words[token] != name:
                continue
            cover = []
            for number in range(16):
                left, top = 5 * (number % 4), 5 * (number // 4)
                wide = max(0, min(left + 5, box[2]) - max(left, box[0]))
                high = max(0, min(top + 5, box[3]) - max(top, box[1]))
                cover.append(wide * high / 25)
            for word, query in (("first", token - 1), ("last", token - 1), ("read", token)):
                weights = [a[query, k] for k in image]
                inside = sum(w * c for w, c in zip(weights, cover, strict=True))
                add(found, f"box_mass {word}", inside, 1)
                add(found, f"box_share {word}", inside, sum(weights))
                largest = max(range(16), key=lambda k: weights[k])
                hit = cover[largest] >= min(0.5, max(cover)) and cover[largest] > 0
                add(found, f"pointing_game {word}", float(hit), 1)
                order = sorted(range(16), key=lambda k: -weights[k])
                size = 25 * sum(cover)
                ratios, distances = [], []
                for k in range(1, 17):
                    shared = 25 * sum(cover[i] for i in order[:k])
                    ratios.append(shared / (25 * k + size - shared))
                    distances.append(abs(25 * k - size))
                nearest = distances.index(min(distances))
                add(found, f"box_overlap {word},threshold=best", max(ratios), 1)
                add(found, f"box_overlap {word},threshold=area", ratios[nearest], 1)
    return dict(found)


def add(found: dict[str, list[float]], key: str, top: float, bottom: float) -> None:
    found[key] = [found[key][0] + top, found[key][1] + bottom]


def expected(subject: Subject, batch: Batch) -> dict[tuple[int, int, str], list[list[float]]]:
    """By layer, head and variant: one pair of sums for each example."""
    made: dict[tuple[int, int, str], list[list[float]]] = defaultdict(lambda: [[0.0, 0.0]] * 3)
    tokens = batch.tokens["language"]
    for layer, pattern in enumerate(eager_patterns(subject, batch)):
        for row, example in enumerate(batch.examples):
            real = batch.tensors["attention_mask"][row].bool()
            begin = int(tokens.starts[row])
            words = [tokens.text[begin + i] for i in real.nonzero()[:, 0].tolist()]
            start = batch.answer_starts[row] - int((~real).sum())
            for head in range(pattern.shape[1]):
                own = pattern[row, head][real][:, real]
                for name, pair in loops(own, words, start, example).items():
                    sums = [*made[layer, head, name]]
                    sums[row] = pair
                    made[layer, head, name] = sums
    return made


def test_every_measure_equals_its_loops(subject: Subject) -> None:
    batch = subject.prepare(examples=examples())
    assert len(set(batch.answer_starts)) > 1, "prompts must differ in length"
    scores = scored(subject, batch)
    wanted = expected(subject, batch)
    seen = set()
    for index, column in enumerate(scores.columns):
        if column.tower != "language":
            continue
        key = column.layer, column.head, f"{column.measure} {column.variant}"
        seen.add(key)
        for row in range(3):
            top, bottom = wanted[key][row]
            found = float(scores.numerator[row, index]), float(scores.denominator[row, index])
            assert found == pytest.approx((top, bottom), rel=2e-4, abs=2e-6), (*key, row)
    assert seen == set(wanted)
    assert {column.head for column in scores.columns if column.tower == "language"} == set(range(6))


def test_a_batch_gives_what_its_examples_give_alone(subject: Subject) -> None:
    together = scored(subject, subject.prepare(examples=examples()))
    alone = [scored(subject, subject.prepare(examples=[one])) for one in examples()]
    apart = BatchScores.merge(alone)
    assert set(apart.columns) == set(together.columns)
    place = [apart.columns.index(column) for column in together.columns]
    for name in ("numerator", "denominator", "null_numerator", "null_denominator"):
        torch.testing.assert_close(
            getattr(apart, name)[:, place], getattr(together, name), rtol=1e-4, atol=1e-5
        )


def test_the_side_of_padding_changes_nothing(subject: Subject) -> None:
    left = scored(subject, subject.prepare(examples=examples()))
    right = scored(subject, subject.prepare(examples=examples(), padding_side="right"))
    assert left.columns == right.columns
    for name in ("numerator", "denominator", "null_numerator", "null_denominator"):
        torch.testing.assert_close(getattr(right, name), getattr(left, name), rtol=1e-4, atol=1e-5)


def test_the_identity_holds_for_every_head_and_example(subject: Subject) -> None:
    scores = scored(subject, subject.prepare(examples=examples()))
    by_name = {
        (c.layer, c.head, c.measure, c.variant): index
        for index, c in enumerate(scores.columns)
        if c.tower == "language"
    }
    count = 0
    for (layer, head, measure, variant), index in by_name.items():
        if measure != "modality_dominance":
            continue
        mdi = scores.numerator[:, index] / scores.denominator[:, index]
        other = by_name[layer, head, "attention_efficiency", variant]
        aei = scores.numerator[:, other] / scores.denominator[:, other]
        share = by_name[layer, head, "text_share", variant]
        q = scores.null_numerator[:, share]
        torch.testing.assert_close(aei, mdi / (1 + q * (mdi - 1)), rtol=1e-9, atol=0)
        count += 1
    assert count == 3 * 6 * 5


def test_what_is_generated_counts_as_what_is_read(subject: Subject) -> None:
    """Flow from the output: the same while a text is written and when it is read afterwards."""
    plain = subject.prepare(examples=examples(), answers=False)
    tokens = 5
    engine = Engine(subject.layout, select_measures(["modality_flow"]))
    grown = tokens_while_generating(plain.tokens, tokens)
    engine.start_batch(grown, [example.id for example in plain.examples])
    sites = frozenset(site.site for site in subject.layout.sites)
    with attach(subject, Attached(sites, on_call=engine.listener)):
        written = subject.generate(plain, tokens, min_new_tokens=tokens)
    while_writing = engine.finish_batch()
    read = scored(subject, continued(subject, plain, written.ids))
    for column in while_writing.columns:
        if column.variant.startswith("output->"):
            mine = while_writing.columns.index(column)
            other = read.columns.index(column)
            assert float(while_writing.values[mine]) == pytest.approx(
                float(read.values[other]), rel=1e-4, abs=1e-6
            ), column
