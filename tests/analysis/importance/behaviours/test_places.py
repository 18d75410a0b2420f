"""Which positions stand for an example, under padding, answers and images."""

from dataclasses import replace

import pytest
import torch

from analysis.importance.behaviours.activity import head_activity
from analysis.importance.behaviours.places import example_means, places, usual_places
from probes.capture import capture
from probes.heads import Site
from probes.inputs import Example
from probes.subject import Subject
from tests import tiny_models as tiny

SITE = Site("language", 1)
EXAMPLES = [
    Example("a", text="a b c d e f g"),
    Example("b", text="a b c", answer="d e"),
    Example("c", text="j"),
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_positions_of_the_prompt(side: str) -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer(side))
    batch = subject.prepare(examples=EXAMPLES, padding_side=side)
    z = torch.zeros(*batch.tensors["input_ids"].shape, 6, 10)
    counted, example = places(batch, SITE, z, "last", 2)
    assert torch.equal(example[counted].bincount(), torch.tensor([2, 2, 1]))
    texts = batch.tokens["language"].text
    words = [texts[index] for index in counted.flatten().nonzero()[:, 0].tolist()]
    assert [word.strip() for word in words] == ["f", "g", "b", "c", "j"]
    counted, _ = places(batch, SITE, z, "text")
    assert counted.sum(1).tolist() == [7, 5, 1]


ANSWERED = [
    Example("a", text="a b c", answer="d e f"),
    Example("b", text="g", answer="h i"),
    Example("c", text="a b", answer="c"),
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_answer_is_read_where_it_is_predicted(side: str) -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer(side))
    batch = subject.prepare(examples=ANSWERED, padding_side=side)
    z = torch.zeros(*batch.tensors["input_ids"].shape, 6, 10)
    counted, example = places(batch, SITE, z, "answer")
    texts = batch.tokens["language"].text
    words = [
        [texts[index].strip() for index in (counted & (example == row)).flatten().nonzero()[:, 0]]
        for row in range(3)
    ]
    assert words == [["c", "d", "e"], ["g", "h"], ["b"]]
    mixed = subject.prepare(examples=EXAMPLES)
    z = torch.zeros(*mixed.tensors["input_ids"].shape, 6, 10)
    with pytest.raises(ValueError, match=r"'a' must have .* counts \(answer\), it has none"):
        places(mixed, SITE, z, "answer")
    with pytest.raises(ValueError, match=r"to tell which count \(text\), and its 4 do not fit"):
        places(mixed, SITE, z[:, :4], "text")
    assert bool(places(mixed, SITE, z[:, :4], "all")[0].all())


def test_the_answer_of_a_decoder_is_its_own_text() -> None:
    subject = Subject(tiny.t5(), tiny.tokenizer("right"))
    batch = subject.prepare(examples=ANSWERED)
    shape = batch.tensors["decoder_input_ids"].shape
    counted, _ = places(batch, Site("decoder", 0), torch.zeros(*shape, 3, 4), "answer")
    assert counted.sum(1).tolist() == [3, 2, 1] and bool(counted[:, 0].all())
    assert usual_places([batch], "decoder") == "answer"
    read = batch.tensors["input_ids"].shape
    with pytest.raises(ValueError, match=r"and encoder does not \(language and decoder do\)"):
        places(batch, Site("encoder", 0), torch.zeros(*read, 3, 4), "answer")
    assert usual_places([batch], "encoder") == "last"


def test_an_answer_that_does_not_fit_the_positions_is_no_guess() -> None:
    """Before, its tokens counted among the last of the prompt."""
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = subject.prepare(examples=ANSWERED)
    ids = batch.tensors["input_ids"]
    cut = replace(batch, tensors={**batch.tensors, "input_ids": ids[:, :-1]})
    for where in ("last", "answer"):
        with pytest.raises(ValueError, match=r"The answer of example 'a' must be found among"):
            places(cut, SITE, torch.zeros(*ids.shape, 6, 10), where)


def test_what_is_usual() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    answered, mixed = (subject.prepare(examples=e) for e in (ANSWERED, EXAMPLES))
    assert usual_places([answered], "language") == "answer"
    assert usual_places([answered, mixed], "language") == "last"
    vision = Subject(tiny.vit(), tiny.image_processor(20))
    patches = vision.prepare(pixel_values=torch.zeros(3, 3, 20, 20))
    assert usual_places([patches], "vision") == "all"


def test_all_patches_count_in_a_vision_tower() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    batch = subject.prepare(pixel_values=torch.zeros(3, 3, 20, 20))
    counted, example = places(batch, Site("vision", 0), torch.zeros(3, 17, 3, 4), "last", 2)
    assert bool(counted.all())
    assert example[:, 0].tolist() == [0, 1, 2]


def test_means_are_over_what_counts() -> None:
    values = torch.tensor([[1.0, 5.0, 9.0], [2.0, 4.0, 6.0]])
    counted = torch.tensor([[True, False, True], [False, True, False]])
    example = torch.tensor([[1, 1, 1], [0, 0, 0]])
    assert example_means(values, counted, example, 2).tolist() == [4.0, 5.0]


def test_an_example_without_a_place_is_named() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = subject.prepare(input_ids=torch.tensor([[5, 6, 7], [1, 2, 2]]))
    with pytest.raises(ValueError, match=r"Example '1' must have a position of language"):
        places(batch, SITE, torch.zeros(2, 3, 6, 10), "text")


def test_activity_is_the_length_of_what_a_head_writes() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = subject.prepare(examples=EXAMPLES)
    found = head_activity(subject, lambda: [batch], ["language"], last=2)
    assert found.values.shape == (3, 18)
    assert found.examples == ("a", "b", "c") and set(found.of) == {"contribution"}
    seen = capture(subject, batch, z="language.*")
    counted, _ = places(batch, SITE, seen.z("L1"), "last", 2)
    weight = subject.model.model.layers[1].self_attn.o_proj.weight.detach()  # type: ignore[union-attr]
    for head in (0, 4):
        written = seen.z("L1")[:, :, head] @ weight[:, head * 10 : head * 10 + 10].T
        for row in range(3):
            mean = written[row, counted[row]].norm(dim=-1).mean()
            column = found.heads.index(found.heads[0].parse(f"language.L1H{head}"))
            assert found.values[row, column] == pytest.approx(float(mean), rel=1e-5)


def test_an_unknown_tower_is_refused() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    with pytest.raises(ValueError, match=r"Towers must be some of language, got \['vision'\]"):
        head_activity(subject, list, ["vision"])
