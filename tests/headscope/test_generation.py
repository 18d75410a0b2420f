"""Before and after edits: marks, T-VHD per word, and one sentence for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import headscope as hs
from analysis.hallucination.vocabulary import Vocabulary
from analysis.vision.head_divergence import answer_reads, head_divergence, t_vhd
from headscope.cli import main
from headscope.plan import AskedWrongly
from probes.loading import load
from probes.written_text import continued

DATA = Path(__file__).resolve().parents[2] / "data"
SCENE = str(DATA / "sets/scenes-broken/images/broken-073.png")
ZERO = "zero:heads=language.L0H1+language.L0H2"
THERE = ["purple star", "blue cross"]


@pytest.fixture(scope="module")
def llava():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def found(llava):
    return hs.generate(llava, "describe the scene", SCENE, [ZERO], objects=THERE)


def test_before_and_after(llava, found):
    batch = llava.prepare(text="describe the scene", images=SCENE)
    assert found["baseline"].text == llava.generate(batch, 128).texts[0].strip()
    with hs.edit(llava, hs.edits.zero(["language.L0H1", "language.L0H2"])) as reports:
        assert found[ZERO].text == llava.generate(batch, 128).texts[0].strip()
    assert found[ZERO].touched == reports[0].touched > 0
    assert found["baseline"].touched is None
    assert [version.edit for version in found] == ["baseline", ZERO]


def test_what_is_not_there_is_marked(found):
    plain = found["baseline"]
    assert [m.kind for m in plain.hallucinated] == ["yellow cross", "white star"]
    assert "[yellow cross]" in plain.marked
    assert "[blue cross]" not in plain.marked
    assert plain.marked.replace("[", "").replace("]", "") == plain.text
    assert repr(found).startswith("baseline: there is a [yellow cross]")


def test_words_have_the_t_vhd_of_their_tokens(llava, found):
    batch = llava.prepare(text="describe the scene", images=SCENE)
    whole = continued(llava, batch, llava.generate(batch, 128).ids)
    reads = answer_reads(whole)
    values = t_vhd(head_divergence(llava, whole, reads)).tolist()
    words = found["baseline"].words
    assert [word.text for word in words] == found["baseline"].text.split()
    assert [word.t_vhd for word in words] == pytest.approx(values)  # a word is a token here
    text = found["baseline"].text
    assert [text[word.start : word.end] for word in words] == [word.text for word in words]
    assert np.std([word.t_vhd for word in words]) > 1


def test_words_of_several_tokens_have_their_mean(llava, monkeypatch):
    ids = torch.tensor([[9, 8, 7]])
    spans = ("two words", [(0, 2), (2, 3), (3, 9)])
    monkeypatch.setattr("analysis.vision.words.token_spans", lambda *_: spans)
    monkeypatch.setattr("analysis.vision.head_divergence.t_vhd", lambda *_: torch.arange(3.0))
    from headscope.word_divergence import word_divergence

    batch = llava.prepare(text="describe the scene", images=SCENE)
    found = word_divergence(llava, batch, ids)
    assert [(w.text, w.start, w.end, w.t_vhd) for w in found] == [
        ("two", 0, 3, 0.5),
        ("words", 4, 9, 2.0),
    ]


def test_without_truth_nothing_is_marked(llava):
    found = hs.generate(llava, "describe the scene", SCENE, max_new_tokens=6)
    assert len(found) == 1
    assert found["baseline"].judged is None
    assert found["baseline"].marked == found["baseline"].text


def test_a_language_model_writes_without_an_image():
    found = hs.generate(load("repeat-lm"), "t01 t02 t03 t01 t02", None, ["zero:heads=L1"])
    assert found["baseline"].text != found["zero:heads=L1"].text
    assert found["baseline"].words == ()
    assert found.notes == ()


def test_asked_wrongly(llava):
    with pytest.raises(AskedWrongly, match="'shapes-vit' writes no text"):
        hs.generate(load("shapes-vit"), images=SCENE)
    with pytest.raises(AskedWrongly, match="There is nothing to go on from"):
        hs.generate(llava)
    with pytest.raises(AskedWrongly, match="'cow' must be an object of the table"):
        hs.generate(llava, "a", SCENE, objects=["cow"])
    with pytest.raises(AskedWrongly, match="can only be found among known objects"):
        hs.generate(load("repeat-lm"), "t01", objects=["cow"])
    with pytest.raises(AskedWrongly, match="language.L9: 'language.L9' must name heads"):
        hs.generate(llava, "a", SCENE, ["zero:heads=language.L9"])


def test_the_command_prints_marks_and_numbers(capsys):
    arguments = ["generate", "shapes-llava", "--image", SCENE, "--prompt", "describe the scene"]
    arguments += ["--edit", ZERO, "--objects", ", ".join(THERE)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "a [yellow cross] , a blue cross" in out
    assert "4 objects named, 2 not there: yellow cross, white star" in out
    assert f"{ZERO}  (" in out and "rows changed)" in out
    assert "[...]: named, but not in the image." in out
    words, numbers = out.splitlines()[6:8]
    assert words.split()[:2] == ["there", "is"]
    assert len(numbers.split()) == len(words.split())
    assert all(line == line.rstrip() for line in out.splitlines())
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    mentions = record["versions"][0]["mentions"]
    assert [m["there"] for m in mentions] == [False, True, True, False]
    assert record["versions"][1]["edit"] == ZERO
    assert record["versions"][0]["words"][0]["text"] == "there"


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["shapes-llava", "--image", "{bad}"], "does not decode", 1),
        (["shapes-llava", "--image", "nowhere.png"], "does not exist", 1),
        (["repeat-lm", "--image", SCENE, "--prompt", "t01"], "reads no images", 1),
        (["shapes-vit", "--image", SCENE], "writes no text", 2),
        (["shapes-llava", "--image", SCENE, "--edit", "vhrr"], "An edit must be one of", 2),
        (
            ["shapes-llava", "--image", SCENE, "--edit", "zero:heads=language.L9"],
            "'language.L9'",
            2,
        ),
        (["shapes-llava", "--image", SCENE, "--max-new-tokens", "0"], "at least 1", 2),
        (["shapes-llava", "--image", SCENE, "--synonyms", "{bad}"], "table of synonyms", 1),
    ],
)
def test_one_sentence_and_an_exit_code(arguments, sentence, code, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    assert main(["generate", *(a.replace("{bad}", str(bad)) for a in arguments)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_vocabulary_of_the_users_own(llava):
    words = Vocabulary({"cross": ("blue cross", "yellow cross"), "star": ()})
    found = hs.generate(llava, "describe the scene", SCENE, objects=["star"], vocabulary=words)
    assert [m.kind for m in found["baseline"].hallucinated] == ["cross", "cross"]
