"""The study: sums per group of tokens against loops, whose answers are read, what is refused."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from planting import scene

from analysis.hallucination.vocabulary import Vocabulary
from analysis.importance.readings import ReadingError
from analysis.importance.study import StudyOptions, available_studies
from analysis.progress import Progress
from analysis.tally import Tally
from analysis.vision.head_divergence import answer_reads, head_divergence, t_vhd
from analysis.vision.vhd import Vhd
from headscope.scorer import tell_progress
from probes.inputs import Example
from probes.subject import Subject
from probes.written_text import continued

TEXTS = ["a b <image> c", "<image> the sat on a", "<image> e"]
ANSWERS = ["the cat on a mat", "cat", "mat f mat g cat"]
OBJECTS = [("mat",), ("cat", "mat"), ("cat",)]


def _subject():
    return Subject(tiny_models.llava(), tiny_models.llava_processor(), name="tiny")


def _examples(objects=OBJECTS, answers=ANSWERS):
    return [
        Example(
            f"e{i}", text=t, image=scene(20 + i, 25, seed=i), answer=answers[i], objects=objects[i]
        )
        for i, t in enumerate(TEXTS)
    ]


def _scored(study, subject, batches):
    study.begin(subject, lambda: batches)
    return [study.score(subject, batch) for batch in batches]


def test_every_column_is_the_sum_over_its_tokens_of_what_two_forwards_gave():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    study = Vhd(answers="given")
    (scores,) = _scored(study, subject, [batch])
    found = head_divergence(subject, batch, answer_reads(batch))
    groups = {
        "all": [[0, 1, 2, 3, 4], [0], [0, 1, 2, 3, 4]],
        "true_object": [[4], [0], [4]],
        "hallucinated_object": [[1], [], [0, 2]],
        "other": [[0, 2, 3], [], [1, 3]],
        "first_token": [[0], [0], [0]],
    }
    fields = {"vhd": "vhd", "vhd_relative": "relative", "vhd_cosine": "cosine"}
    places = {(c.measure, c.variant, c.layer, c.head): i for i, c in enumerate(scores.columns)}
    assert len(places) == len(scores.columns) == 18 * (3 * 5 + 1)
    starts, largest = [0, 5, 6], 0.0
    for measure, name in fields.items():
        for group, tokens in groups.items():
            for site, layer in found.items():
                for head in range(6):
                    place = places[measure, f"words={group}", site.layer, head]
                    for row in range(3):
                        reads = [starts[row] + token for token in tokens[row]]
                        values = [getattr(layer, name)[read].tolist() for read in reads]
                        own = sum(each[head] for each in values)
                        rest = sum((sum(each) - each[head]) / 5 for each in values)
                        assert float(scores.numerator[row, place]) == pytest.approx(own, rel=1e-5)
                        assert float(scores.denominator[row, place]) == len(reads)
                        null = float(scores.null_numerator[row, place])
                        assert null == pytest.approx(rest, rel=1e-5)
                        assert float(scores.null_denominator[row, place]) == len(reads)
                        largest = max(largest, abs(own - rest))
    assert largest > 1e-3
    for site, layer in found.items():
        for head in range(6):
            place = places["vhd_outlier", "words=all", site.layer, head]
            assert scores.numerator[2, place] == float(layer.outlier[6:, head].sum())
    assert scores.examples == ("e0", "e1", "e2")


def test_batches_and_their_order_change_nothing():
    subject = _subject()
    together = subject.prepare(examples=_examples())
    (whole,) = _scored(Vhd(answers="given"), subject, [together])
    apart = [subject.prepare(examples=[example]) for example in _examples()]
    parts = _scored(Vhd(answers="given"), subject, apart)
    for row, part in enumerate(parts):
        assert part.columns == whole.columns
        torch.testing.assert_close(part.numerator[0], whole.numerator[row], atol=1e-5, rtol=1e-4)


def test_its_own_words_are_read_where_objects_are_known_or_answers_are_not():
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    for objects, answers, own in (
        (OBJECTS, ANSWERS, True),
        ([(), (), ()], ANSWERS, False),
        ([(), (), ()], [None] * 3, True),
    ):
        study = Vhd()
        study.begin(
            subject, lambda o=objects, a=answers: [subject.prepare(examples=_examples(o, a))]
        )
        assert study._own == own
    study = Vhd(max_new_tokens=4)
    (scores,) = _scored(study, subject, [batch])
    prompts = subject.prepare(examples=_examples(), answers=False)
    whole = continued(subject, prompts, subject.generate(prompts, 4).ids)
    reads = answer_reads(whole)
    place = [
        i for i, c in enumerate(scores.columns) if c.variant == "words=all" and c.measure == "vhd"
    ]
    counts = torch.bincount(reads.example, minlength=3).double()
    assert torch.equal(scores.denominator[:, place[0]], counts)
    expected = torch.zeros(3, 18, dtype=torch.float64)
    layers = list(head_divergence(subject, whole, reads).values())
    expected.index_add_(0, reads.example, torch.cat([layer.vhd.double() for layer in layers], 1))
    torch.testing.assert_close(scores.numerator[:, place], expected, atol=1e-5, rtol=1e-5)


def test_tables_hold_every_token_and_are_made_again_for_what_another_process_scored():
    subject = _subject()
    batches = [subject.prepare(examples=_examples()[:2]), subject.prepare(examples=_examples()[2:])]
    study = Vhd(answers="given", k=2)
    tally = Tally(replicates=10)
    for part in _scored(study, subject, batches):
        tally.add(part)
    tables = study.finish(subject, lambda: batches, tally)
    tokens = tables["tokens"]
    assert tokens["example"].tolist() == ["e0"] * 5 + ["e1"] + ["e2"] * 5
    assert tokens["token"].tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4]
    assert "".join(tokens["text"][:5]) == "the cat on a mat"
    assert tokens["kind"].tolist()[6:] == ["mat", "", "mat", "", "cat"]
    assert tokens["mention"].tolist()[6:] == [0, -1, 1, -1, 2]
    found = head_divergence(subject, batches[1], answer_reads(batches[1]))
    assert tokens["t_vhd"].tolist()[6:] == pytest.approx(t_vhd(found, 2).tolist())
    assert {name for name in tokens if name.startswith("t_vhd")} == {
        "t_vhd", "t_vhd_top1", "t_vhd_top2", "t_vhd_top4"
    }  # fmt: skip
    assert (tokens["t_vhd_top1"] < tokens["t_vhd"]).all()
    assert len(tables["token_groups"]) == 4 * len(set(tables["token_groups"]["compared"]))
    again = Vhd(answers="given", k=2)
    again.begin(subject, lambda: batches)
    again.score(subject, batches[1])
    assert again.finish(subject, lambda: batches, tally)["tokens"].equals(tokens)


def test_without_objects_there_are_no_groups():
    subject = _subject()
    batch = subject.prepare(examples=_examples([(), (), ()]))
    study = Vhd()
    (scores,) = _scored(study, subject, [batch])
    assert {c.variant for c in scores.columns} == {"words=all", "words=first_token"}
    tables = study.finish(subject, lambda: [batch], Tally(replicates=2))
    assert set(tables) == {"tokens"} and set(tables["tokens"]["group"]) == {""}
    mixed = subject.prepare(examples=_examples([("mat",), (), ("cat",)]))
    (scores,) = _scored(Vhd(answers="given"), subject, [mixed])
    place = [c.variant for c in scores.columns].index("words=other")
    assert scores.denominator[:, place].tolist() == [3, 0, 2]


def test_synonyms_count_and_an_empty_answer_counts_for_nothing():
    subject = _subject()
    vocabulary = Vocabulary({"pet": ("cat",), "mat": ()})
    batch = subject.prepare(examples=_examples([("pet",), ("pet",), ("mat",)]))
    study = Vhd(answers="given", vocabulary=vocabulary)
    _scored(study, subject, [batch])
    tokens = study.finish(subject, lambda: [batch], Tally(replicates=2))["tokens"]
    assert tokens["kind"][1] == "pet" and tokens["group"][1] == "true_object"
    silent = _subject()
    silent.model.generation_config.eos_token_id = list(range(31))
    (scores,) = _scored(Vhd(), silent, [silent.prepare(examples=_examples())])
    assert not scores.denominator.any() and math.isnan(scores.values[0])


def test_one_head_per_layer_has_no_other_to_be_compared_with():
    torch.manual_seed(3)
    from analysis.vision.read_sums import summed

    value, count, null, null_count = summed(
        torch.tensor([[2.0], [3.0]]), torch.tensor([0, 1]), torch.tensor([True, True]), 2
    )
    assert value[:, 0].tolist() == [2.0, 3.0] and count.sum() == 2
    assert not null.any() and not null_count.any()
    holes = torch.tensor([[1.0, float("nan"), 5.0]])
    value, count, null, null_count = summed(holes, torch.tensor([0]), torch.tensor([True]), 1)
    assert (value.tolist(), count.tolist()) == ([[1.0, 0.0, 5.0]], [[1.0, 0.0, 1.0]])
    assert (null.tolist(), null_count.tolist()) == ([[5.0, 0.0, 1.0]], [[1.0, 0.0, 1.0]])


def test_what_cannot_be_measured_is_one_sentence():
    llama = Subject(tiny_models.llama(), tiny_models.tokenizer(), name="words")
    with pytest.raises(ValueError, match=r"'words' is a language model\. Choose a model"):
        Vhd().begin(llama, list)
    vit = Subject(tiny_models.vit(), tiny_models.image_processor(20), name="sees")
    with pytest.raises(ValueError, match="'sees' is a vision model"):
        Vhd().begin(vit, list)
    subject = _subject()
    mixed = [*_examples()[:2], Example("bare", text="a b", answer="c")]
    batch = subject.prepare(examples=mixed)
    study = Vhd(answers="given")
    study.begin(subject, lambda: [batch])
    with pytest.raises(ReadingError, match="Example 'bare' has no image") as caught:
        study.score(subject, batch)
    assert caught.value.example_id == "bare"
    unanswered = subject.prepare(examples=_examples(answers=[None] * 3))
    with pytest.raises(ReadingError, match="Example 'e0' must have an answer whose words are read"):
        study.score(subject, unanswered)
    with pytest.raises(ValueError, match="`answers` must be auto, own or given, got 'mine'"):
        Vhd(answers="mine")
    with pytest.raises(ValueError, match="`how` must be one of delete, blank, noise, got 'cut'"):
        Vhd(how="cut")


def test_it_is_found_by_its_name_and_has_a_section():
    study = available_studies()["vhd"](StudyOptions(seed=7))
    assert (study.name, study.section, study.seed) == ("vhd", "vision", 7)


def test_its_passes_over_the_data_are_stages():
    subject, seen = _subject(), []
    batches = [subject.prepare(examples=_examples()[:2]), subject.prepare(examples=_examples()[2:])]
    study = Vhd(answers="given")
    tell_progress(study, Progress(lambda s: seen.append((s.name, s.done, s.total, s.ended)), 3))
    _scored(study, subject, batches)
    steps = [(0, 3, False), (2, 3, False), (3, 3, False), (3, 3, True)]
    assert seen == [("vhd: objects and answers", *step) for step in steps]
    study.finish(subject, lambda: batches, Tally(replicates=2))
    assert seen[4:] == [("vhd: tokens", *step) for step in steps]
