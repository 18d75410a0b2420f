"""Retrieval while a model writes, against a greedy loop on eager patterns."""

import re

import pytest
import torch

from analysis.importance.behaviours.needles import NeedleOptions, needle_trials
from analysis.importance.behaviours.retrieval import Retrieval, recall, run_trials
from analysis.tally import Tally
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny

OPTIONS = NeedleOptions(words=6, lengths=(29, 43), depths=(0.2, 0.9), repeats=4)


@pytest.fixture(scope="module")
def repeats() -> Subject:
    return load("repeat-lm")


def by_hand(folder: str, trials: list) -> tuple[list[list[int]], dict]:
    """Tokens written and, by trial, layer, head and step, the most attended key: no cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    written, places = [], {}
    for number, trial in enumerate(trials):
        ids, said = list(trial.ids), []
        for step in range(len(trial.wanted)):
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_attentions=True)
            for layer, pattern in enumerate(out.attentions):
                for head in range(pattern.shape[1]):
                    places[number, layer, head, step] = int(pattern[0, head, -1].argmax())
            said.append(int(out.logits[0, -1].argmax()))
            ids.append(said[-1])
        written.append(said)
    return written, places


def test_scores_equal_those_of_a_loop_without_a_cache(repeats: Subject) -> None:
    from probes.bundled import bundled_models

    study = Retrieval(OPTIONS, own_text=False)
    study.begin(repeats, list)
    trials = needle_trials(repeats, OPTIONS)
    written, places = by_hand(str(bundled_models()["repeat-lm"].path), trials)
    total: dict[tuple[int, int], list[float]] = {}
    for number, trial in enumerate(trials):
        if recall(trial, torch.tensor(written[number])) <= 0.5:
            continue
        for layer in range(2):
            for head in range(8):
                hits = set()
                for step, token in enumerate(written[number]):
                    place = places[number, layer, head, step]
                    inside = trial.start < place < trial.start + 6
                    if inside and trial.ids[place] == token:
                        hits.add(place)
                total.setdefault((layer, head), []).append(len(hits) / 5)
    accepted = len(total[0, 0])
    assert 0 < accepted <= len(trials)
    assert study.share == accepted / len(trials)
    heads = study.lines(repeats, "data")
    assert set(heads["inputs"]) == {"needles"} and set(heads["n"]) == {accepted}
    for line in heads.itertuples():
        mine = total[line.layer, line.head]
        assert line.value == pytest.approx(sum(mine) / len(mine))
    assert heads["value"].max() > 0.5
    assert heads["value"].min() == 0


def test_places_are_right_where_a_window_keeps_the_last_keys() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    settings = {**tiny.llama_config().to_dict(), "sliding_window": 4, "eos_token_id": None}
    subject = Subject(MistralForCausalLM(MistralConfig(**settings)).eval(), tiny.tokenizer("left"))
    trials = needle_trials(subject, NeedleOptions(words=4, lengths=(13,), repeats=2))
    seen, said = run_trials(subject, trials)
    assert said.shape == (10, 3)
    for places in seen.places.values():
        assert places.shape == (10, 6, 3)
        for step in range(3):
            last = 12 + step
            assert bool(((places[..., step] > last - 4) & (places[..., step] <= last)).all())


def test_a_model_that_says_nothing_is_not_measured() -> None:
    subject = Subject(tiny.llama(eos_token_id=None), tiny.tokenizer("left"))
    study = Retrieval(NeedleOptions(words=4, lengths=(13,), depths=(0.5,)), own_text=False)
    study.begin(subject, list)
    assert study.share == 0
    scores = study.score(subject, subject.prepare(text=["a b c", "d e f"]))
    (reason,) = scores.reasons.values()
    assert re.search("more than half of the needle in 5 trials, it did in 0 of 2 ", reason)
    assert scores.columns == () and len(scores.examples) == 2
    assert not len(study.lines(subject, "data"))
    tables = study.finish(subject, list, Tally())
    assert len(tables["needles"]) == 2
    assert not tables["needles"]["accepted"].any()


def test_an_encoder_is_refused() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    with pytest.raises(ValueError, match="must have a language tower that reads from left"):
        Retrieval().begin(subject, list)


def test_nothing_is_left_attached(repeats: Subject) -> None:
    before = [len(module._forward_pre_hooks) for module in repeats.model.modules()]
    trials = needle_trials(repeats, NeedleOptions(words=4, lengths=(20,), depths=(0.5,)))
    run_trials(repeats, trials)
    assert [len(module._forward_pre_hooks) for module in repeats.model.modules()] == before
