"""Needle prompts: where everything stands, and the score of heads that look there."""

import pytest
import torch
from torch import Tensor

from analysis.importance.behaviours.listening_while_writing import MostAttended
from analysis.importance.behaviours.needles import Needle, NeedleOptions, needle_trials
from analysis.importance.behaviours.probe_sequences import ordinary_ids
from analysis.importance.behaviours.retrieval import recall, retrieval_scores
from probes.heads import Site
from probes.subject import Subject
from tests import tiny_models as tiny

SITE = Site("language", 2)
TRIAL = Needle("a", (1, 9, 9, 20, 21, 22, 23, 9, 20), 3, (20, 21, 22, 23), 0.5)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.llama(), tiny.tokenizer("left"))


def test_only_words_are_drawn(subject: Subject) -> None:
    words = ordinary_ids(subject)
    names = subject.tokenizer.convert_ids_to_tokens(words.tolist())
    assert sorted(names) == sorted({word for word in tiny.WORDS if word not in ".?"})
    assert words.tolist() == sorted(words.tolist())
    assert ordinary_ids(subject, most=3).tolist() == words[:3].tolist()


def test_prompts_are_laid_out_as_said(subject: Subject) -> None:
    options = NeedleOptions(words=5, lengths=(23, 31), repeats=2, depths=(0.0, 0.3, 1.0))
    trials = needle_trials(subject, options)
    assert len(trials) == 12
    assert len({trial.name for trial in trials}) == 12
    for trial in trials:
        ids = list(trial.ids)
        assert len(ids) in (23, 31)
        assert ids[0] == 1
        assert tuple(ids[trial.start : trial.start + 5]) == trial.needle
        assert ids[-1] == trial.needle[0]
        rest = ids[: trial.start] + ids[trial.start + 5 : -1]
        assert not set(rest) & set(trial.needle)
        assert len(set(trial.needle)) == 5
    assert [trial.start for trial in trials[:6]] == [1, 1, 6, 6, 17, 17]
    assert trials == needle_trials(subject, options)


def test_filler_is_a_piece_of_the_text_without_the_needle(subject: Subject) -> None:
    text = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    options = NeedleOptions(words=3, lengths=(17,), repeats=3, depths=(0.0,))
    for trial in needle_trials(subject, options, text):
        hay = list(trial.ids[4:-1])
        kept = [token for token in text if token not in trial.needle]
        first = kept.index(hay[0])
        assert hay == [kept[(first + step) % len(kept)] for step in range(len(hay))]


def test_the_longest_prompt_leaves_room_for_the_answer(subject: Subject) -> None:
    lengths = {len(trial.ids) for trial in needle_trials(subject, NeedleOptions(words=4))}
    assert max(lengths) == 61 - 3
    assert min(lengths) == 10


def test_a_needle_that_does_not_fit_is_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match="must have 24 ordinary tokens for a needle of 12"):
        needle_trials(subject, NeedleOptions(words=12))
    with pytest.raises(ValueError, match="A needle must be at least 3 tokens long, got 2"):
        NeedleOptions(words=2)
    with pytest.raises(ValueError, match="Depths must lie between 0 and 1"):
        NeedleOptions(depths=(0.5, 1.2))


def test_recall_counts_words_not_places() -> None:
    assert recall(TRIAL, torch.tensor([23, 22, 9])) == pytest.approx(2 / 3)
    assert recall(TRIAL, torch.tensor([21, 21, 21])) == pytest.approx(1 / 3)


def seen(places: Tensor) -> MostAttended:
    found = MostAttended(9)
    found._steps[SITE] = dict(enumerate(places.unbind(-1)))
    return found


def test_a_head_earns_what_it_looks_at_when_it_is_said() -> None:
    said = torch.tensor([[21, 22, 23]])
    places = torch.tensor(
        [
            [
                [4, 5, 6],  # each in time: 3 of 3
                [4, 4, 6],  # 2 of 3
                [3, 4, 5],  # always the word before: nothing
                [4, 4, 4],  # one of them
                [0, 8, 7],  # elsewhere
            ]
        ]
    )
    scores = retrieval_scores(seen(places), [TRIAL], said, [1.0])
    expected = torch.tensor([[1.0, 2 / 3, 0.0, 1 / 3, 0.0]], dtype=torch.float64)
    assert torch.allclose(scores.numerator, expected)
    assert [column.head for column in scores.columns] == [0, 1, 2, 3, 4]
    assert bool((scores.denominator == 1).all())


def test_a_word_counts_once_and_the_cue_not_at_all() -> None:
    said = torch.tensor([[21, 21, 20]])
    places = torch.tensor([[[4, 4, 3]]])
    scores = retrieval_scores(seen(places), [TRIAL], said, [1.0])
    assert scores.values.tolist() == pytest.approx([1 / 3])


def test_the_null_is_what_looking_somewhere_into_the_needle_earns() -> None:
    said = torch.tensor([[21, 22, 23]]).repeat(40, 1)
    places = torch.tensor([[4, 5, 6], [0, 1, 2]]).repeat(40, 1, 1)
    trials = [Needle(f"t{n}", TRIAL.ids, 3, TRIAL.needle, 0.5) for n in range(40)]
    scores = retrieval_scores(seen(places), trials, said, [1.0] * 40)
    null = scores.null_values.tolist()
    assert null[0] == pytest.approx(1 / 4, abs=0.04)  # each word is in its place 1 time in 4
    assert null[1] == 0


def test_trials_that_were_not_said_do_not_count() -> None:
    said = torch.tensor([[21, 22, 23], [9, 9, 9]])
    places = torch.tensor([[[4, 5, 6]], [[4, 5, 6]]])
    other = Needle("b", TRIAL.ids, 3, TRIAL.needle, 0.5)
    scores = retrieval_scores(seen(places), [TRIAL, other], said, [1.0, 0.5])
    assert scores.numerator.tolist() == [[1.0], [0.0]]
    assert scores.denominator.tolist() == [[1.0], [0.0]]
