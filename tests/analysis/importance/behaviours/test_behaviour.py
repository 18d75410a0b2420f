"""The probe of random repeats: its sequences, and scores against eager patterns."""

import pytest
import torch

from analysis.importance.behaviours.behaviour import INPUTS, SECOND_BLOCK, Behaviour
from analysis.tally import Tally
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny


@pytest.fixture(scope="module")
def repeats() -> Subject:
    return load("repeat-lm")


def test_sequences_are_bos_and_a_block_of_distinct_words_twice() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    batches = Behaviour(words=7, seeds=3, sequences=5).probe(subject)
    assert len(batches) == 3
    every = torch.cat([batch.tensors["input_ids"] for batch in batches])
    assert every.shape == (15, 15)
    assert bool((every[:, 0] == 1).all())
    assert torch.equal(every[:, 1:8], every[:, 8:])
    assert all(len(set(row)) == 7 for row in every[:, 1:8].tolist())
    assert len({tuple(row) for row in every.tolist()}) == 15
    assert int(every[:, 1:].min()) >= 5
    assert batches[1].examples[2].id == f"{INPUTS}/1/2"


def test_the_block_is_as_long_as_fits() -> None:
    short = Subject(tiny.gpt2(), tiny.tokenizer("left"))  # 17 words, context 37
    assert Behaviour().probe(short)[0].tensors["input_ids"].shape[1] == 1 + 2 * 17
    with pytest.raises(ValueError, match="must be 4 to 17 long to fit twice"):
        Behaviour(words=19).probe(short)


def test_scores_equal_eager_patterns(repeats: Subject) -> None:
    from transformers import AutoModelForCausalLM

    from probes.bundled import bundled_models

    study = Behaviour(words=23, seeds=2, sequences=3)
    study.begin(repeats, list)
    heads = study.lines(repeats, "data")
    assert set(heads["inputs"]) == {INPUTS} and set(heads["n"]) == {6}
    path = bundled_models()["repeat-lm"].path
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    ids = torch.cat([batch.tensors["input_ids"] for batch in study.probe(repeats)])
    with torch.no_grad():
        patterns = torch.stack(model(ids, output_attentions=True).attentions)
    query = torch.arange(24, 47)
    expected = {
        "induction": patterns[..., query, query - 22].mean((1, 3)),
        "duplicate_token": patterns[..., query, query - 23].mean((1, 3)),
    }
    for measure, values in expected.items():
        mine = heads[(heads["measure"] == measure) & (heads["variant"] == SECOND_BLOCK)]
        for line in mine.itertuples():
            assert line.value == pytest.approx(float(values[line.layer, line.head]), abs=1e-5)
            assert line.null_low == pytest.approx(float((1 / (query + 1.0)).mean()), abs=1e-6)
    previous = patterns.diagonal(-1, -2, -1).sum((1, 3)) / (47 * 6)
    mine = heads[(heads["measure"] == "previous_token") & (heads["variant"] == "")]
    for line in mine.itertuples():
        assert line.value == pytest.approx(float(previous[line.layer, line.head]), abs=1e-5)
    assert float(expected["induction"].max()) > 0.5


def test_the_mean_over_seeds_is_the_value(repeats: Subject) -> None:
    study = Behaviour(words=9, seeds=3, sequences=2)
    lines = study.lines(repeats, "data")
    tables = study.finish(repeats, list, Tally())
    key = ["tower", "layer", "head", "measure", "variant"]
    second = tables["behaviour"][tables["behaviour"]["variant"] == SECOND_BLOCK]
    means = second.groupby(key)["value"].mean()
    for line in lines.itertuples():
        if line.variant == SECOND_BLOCK:
            place = (line.tower, line.layer, line.head, line.measure, line.variant)
            assert means[place] == pytest.approx(line.value)
    assert set(second["seed"]) == {0, 1, 2}


def test_the_users_examples_get_no_columns(repeats: Subject) -> None:
    scores = Behaviour().score(repeats, repeats.prepare(text=["t01 t02", "t03"]))
    assert scores.columns == () and scores.numerator.shape == (2, 0)


def test_the_language_tower_of_a_vision_language_model_is_probed() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    study = Behaviour(words=6, seeds=1, sequences=2)
    heads = study.lines(subject, "data")
    assert set(heads["tower"]) == {"language"}
    assert len(heads[heads["variant"] == SECOND_BLOCK]) == 2 * 18
    ids = study.probe(subject)[0].tensors["input_ids"]
    assert 4 not in ids  # the image token


def test_a_vision_model_is_refused() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    with pytest.raises(ValueError, match="'behaviour' must have a language tower"):
        Behaviour().begin(subject, list)
