"""The scan for heads that work harder on a behaviour, on planted and on absent differences."""

import re

import numpy as np
import pytest
import torch

from analysis.importance.behaviours.activity import Activity
from analysis.importance.behaviours.scan import compared, scan
from analysis.importance.study import StudyOptions
from probes.heads import Head
from probes.inputs import Example
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny

HEADS = tuple(Head("language", layer, head) for layer in range(5) for head in range(7))
PLANTED = HEADS[11]


def activity(values: np.ndarray, name: str) -> Activity:
    ids = tuple(f"{name}{number}" for number in range(len(values)))
    return Activity(values, ids, HEADS, ("contribution",) * len(HEADS))


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.gamma(9.0, size=(23, 35)), generator.gamma(9.0, size=(19, 35))
    one[:, 11] += 5
    heads, splits = compared(activity(one, "b"), activity(other, "c"))
    first = heads.iloc[0]
    assert (first["layer"], first["head"]) == (PLANTED.layer, PLANTED.head)
    assert first["effect_size"] > 1 and first["p"] == 1 / 10_000 and splits == 9_999
    assert (heads["q"] <= 0.05).sum() == 1
    assert first["mean_behaviour"] == pytest.approx(one[:, 11].mean())


def batches(subject: Subject, blocks: list[list[int]]) -> list:
    examples = [
        Example(f"x{number}", text=" ".join(f"t{word:02d}" for word in words))
        for number, words in enumerate(blocks)
    ]
    return [subject.prepare(examples=examples[:5]), subject.prepare(examples=examples[5:])]


@pytest.fixture(scope="module")
def found():
    """Repeats against text without any, on a model with induction heads in layer 1."""
    subject = load("repeat-lm")
    generator = np.random.default_rng(2)
    words = [generator.permutation(62)[:24].tolist() for _ in range(16)]
    repeated = [one[:12] + one[:12] for one in words[:8]]
    return scan(
        subject, batches(subject, repeated), batches(subject, words[8:]), top=(1, 4), randoms=6
    )


def test_a_scan_says_which_heads_and_what_they_are_worth(found) -> None:
    assert len(found.heads) == 16
    assert found.examples == (8, 8) and found.splits == 9_999
    sizes = found.heads["effect_size"].abs().to_numpy()
    assert (np.diff(sizes) <= 0).all()
    assert set(found.confirmation["inputs"]) == {"behaviour", "control"}
    assert len(found.confirmation) == 2 * 2 * 7
    assert found.top(1)[0] in HEADS or found.top(1)[0].layer < 2
    text = repr(found)
    assert text.startswith("Scan of 16 heads, 8 behaviour against 8 control examples: ")
    assert re.search(r"behaviour: without the top 4: cross_entropy \S+ nats, random sets", text)
    excess = found.excess()
    assert excess["k"].tolist() == [1, 4]
    with pytest.raises(ValueError, match="`inputs` must be one of behaviour, control, got 'x'"):
        found.excess("x")


def test_both_sets_lose_without_the_same_heads(found) -> None:
    lines = found.confirmation[found.confirmation["kind"] == "chosen"]
    by_set = lines.groupby("inputs")["heads"].apply(list)
    assert by_set["behaviour"] == by_set["control"]
    assert by_set["behaviour"][0] == str(found.top(1)[0])


def test_the_same_inputs_differ_in_nothing() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    texts = ["a b c d", "c d e", "f g h i j"]
    examples = [Example(str(number), text=text) for number, text in enumerate(texts)]
    batch = subject.prepare(examples=examples)
    same = scan(subject, [batch], [batch], top=())
    assert (same.heads["p"] == 1).all() and (same.heads["effect_size"] == 0).all()
    assert len(same.confirmation) == 0 and same.splits == 20
    assert "0 differ" in repr(same)


def test_a_vision_model_is_scanned_over_all_its_patches() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    draw = torch.Generator().manual_seed(4)
    one = subject.prepare(pixel_values=torch.randn(3, 3, 20, 20, generator=draw))
    other = subject.prepare(pixel_values=torch.randn(4, 3, 20, 20, generator=draw))
    found = scan(
        subject, [one], [other], top=(2,), randoms=3, options=StudyOptions(effects=("jsd",))
    )
    assert set(found.heads["tower"]) == {"vision"} and len(found.heads) == 6
    assert found.effect == "jsd" and found.splits == 35


def test_too_few_examples_are_refused() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = subject.prepare(text=["a b c"])
    with pytest.raises(ValueError, match="Both sets must have at least 2 examples"):
        scan(subject, [batch], [batch])
    with pytest.raises(ValueError, match="Both sets must hold examples, one is empty"):
        scan(subject, [batch], [])
