"""Words kept by the study, against the answer read on its own, and where texts part."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from planting import scene

from analysis.run_files import RunError
from analysis.tally import Tally
from analysis.vision.head_divergence import Diverged, Reads, answer_reads, head_divergence, t_vhd
from analysis.vision.kept_words import FILE, WordKeeper, read_kept_words
from analysis.vision.vhd import Vhd
from analysis.vision.words import Word, token_spans
from probes.heads import Site
from probes.inputs import Example
from probes.subject import Subject
from probes.written_text import continued

TEXTS = ["a b <image> c", "<image> the sat on a", "<image> e"]
ANSWERS = ["the cat on a mat", "cat", "mat f mat g cat"]
OBJECTS = [("mat",), ("cat", "mat"), ("cat",)]


def _subject():
    return Subject(tiny_models.llava(), tiny_models.llava_processor(), name="tiny")


def _examples():
    return [
        Example(f"e{i}", text=t, image=scene(20 + i, 25, seed=i), answer=ANSWERS[i], objects=o)
        for i, (t, o) in enumerate(zip(TEXTS, OBJECTS, strict=True))
    ]


def _finished(study, subject, batches, folder, kept):
    study.begin(subject, lambda: batches)
    tally = Tally(replicates=5)
    for batch in batches:
        tally.add(study.score(subject, batch))
    study.kept = kept
    tables = study.finish(subject, lambda: batches, tally)
    study.save(folder)
    tables["words"].to_parquet(folder / "words.parquet", index=False)
    found = read_kept_words(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("answers", ["given", "own"])
def test_words_have_the_vhd_of_their_example_alone(tmp_path, answers):
    subject = _subject()
    together = subject.prepare(examples=_examples())
    study = Vhd(answers=answers, max_new_tokens=4, k=2)
    found = _finished(study, subject, [together], tmp_path, ("e2", "e0"))
    assert list(dict.fromkeys(found.frame["example"])) == ["e2", "e0"]
    for number in (2, 0):
        alone = subject.prepare(examples=[_examples()[number]])
        read = alone
        if answers == "own":
            prompt = subject.prepare(examples=[_examples()[number]], answers=False)
            read = continued(subject, prompt, subject.generate(prompt, 4).ids)
        reads = answer_reads(read)
        layers = head_divergence(subject, read, reads)
        ids = read.tensors["input_ids"][0, reads.position].tolist()
        text, spans = token_spans(subject.tokenizer, ids)
        mine = found.of(f"e{number}")
        lead = len(text) - len(text.lstrip())
        assert mine["text"].tolist() == text.split()
        assert [text[lead:][s:e] for s, e in zip(mine["start"], mine["end"], strict=True)] == (
            text.split()
        )
        # A word is a token here; tokens that write nothing belong to none.
        wrote = [place for place, (start, end) in enumerate(spans) if text[start:end].strip()]
        assert len(wrote) == len(mine)
        np.testing.assert_allclose(mine["t_vhd"], t_vhd(layers, 2)[wrote], rtol=1e-4)
        for site, layer in layers.items():
            np.testing.assert_allclose(
                found.vhd[mine.index, site.layer], layer.vhd[wrote], rtol=1e-4, atol=1e-5
            )
        assert mine["first"].tolist() == reads.position[wrote].tolist()
        assert set(mine["answer"]) == {answers}
        prefix, scored = read.tensors["input_ids"][0], alone.tensors["input_ids"][0]
        for line in mine.itertuples():
            alike = bool((prefix[: line.first] == scored[: line.first]).all())
            assert (line.query_first, line.query_last) == (
                (line.first - 1, line.first - 1) if alike else (-1, -1)
            )
    assert np.ptp(found.vhd) > 1e-3


def test_groups_are_those_of_the_tokens(tmp_path):
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    found = _finished(Vhd(answers="given"), subject, [batch], tmp_path, ("e0",))
    assert found.frame["group"].tolist() == [
        "other", "hallucinated_object", "other", "other", "true_object"
    ]  # fmt: skip
    assert found.frame["mention"].tolist() == [-1, 0, -1, -1, 1]


class _Letters:
    def decode(self, ids, skip_special_tokens=True):
        return "".join(" abcdefg"[number] for number in ids)


def test_a_word_of_several_tokens_has_their_mean_and_padding_does_not_count():
    example = SimpleNamespace(id="x")
    # Padding, a prompt of one token, then the answer "ab c".
    ids = torch.tensor([[0, 7, 1, 2, 0, 3]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    read = SimpleNamespace(tensors={"input_ids": ids, "attention_mask": mask}, examples=[example])
    other = ids.clone()
    other[0, 3] = 4  # the data go on with "ad"
    scored = SimpleNamespace(tensors={"input_ids": other, "attention_mask": mask})
    reads = Reads(torch.zeros(4, dtype=torch.long), torch.tensor([2, 3, 4, 5]))
    vhd = torch.tensor([[1.0, 10.0, 7.0], [2.0, 20.0, 9.0], [4.0, 40.0, 5.0], [8.0, 80.0, 3.0]])
    layer = Diverged(vhd, vhd, vhd, vhd > 0)
    said = [Word("a", "other"), Word("b", "hallucinated_object", "b", 3), Word(" "), Word("c")]
    keeper = WordKeeper(layers=2)
    total, found = torch.tensor([1.0, 3.0, 5.0, 9.0]), {Site("language", 1): layer}
    keeper.keep(_Letters(), scored, read, reads, said, found, total)  # type: ignore[arg-type]
    frame = keeper.frame(["unknown", "x"])
    assert frame["text"].tolist() == ["ab", "c"]
    assert (frame["start"].tolist(), frame["end"].tolist()) == ([0, 3], [2, 4])
    assert frame["t_vhd"].tolist() == [2.0, 9.0]
    assert frame["group"].tolist() == ["hallucinated_object", ""]
    assert (frame["first"].tolist(), frame["last"].tolist()) == ([1, 4], [2, 4])
    # Both tokens of the first word are predicted from the same text; nothing behind it is.
    assert frame["query_first"].tolist() == [0, -1]
    assert frame["query_last"].tolist() == [1, -1]
    block = keeper._found["x"][1]
    assert block.shape == (2, 2, 3)
    assert np.isnan(block[:, 0]).all()
    assert block[:, 1].tolist() == [[1.5, 15.0, 8.0], [8.0, 80.0, 3.0]]


def test_old_and_damaged_sections(tmp_path):
    assert read_kept_words(tmp_path) is None
    subject = _subject()
    batch = subject.prepare(examples=_examples())
    found = _finished(Vhd(answers="given"), subject, [batch], tmp_path, ("e0", "e1"))
    found.frame.iloc[1:].to_parquet(tmp_path / "words.parquet")
    with pytest.raises(RunError, match=r"must hold 5 words, it has \[6, 3, 6\]"):
        read_kept_words(tmp_path)
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(RunError, match="cannot be read"):
        read_kept_words(tmp_path)


def test_nothing_is_kept_unasked(tmp_path):
    subject = _subject()
    batch = subject.prepare(examples=[replace(e, objects=()) for e in _examples()])
    study = Vhd(answers="given")
    study.begin(subject, lambda: [batch])
    study.score(subject, batch)
    assert set(study.finish(subject, lambda: [batch], Tally(replicates=2))) == {"tokens"}
    study.save(tmp_path)
    assert not list(tmp_path.iterdir())
