"""Which objects a text names: longest names first, plurals, places, synonyms, fix-ups."""

import json

import pytest

from analysis.hallucination.plurals import plural_forms
from analysis.hallucination.vocabulary import Mention, Vocabulary, mentions

COCO = Vocabulary(
    {
        "person": ("man", "woman", "baby"),
        "couch": ("sofa", "love seat"),
        "chair": ("seat",),
        "toilet": ("toilet seat",),
        "elephant": ("baby elephant", "adult elephant"),
        "train": ("passenger train",),
        "dog": (),
        "hot dog": (),
        "bus": (),
        "": ("train track", "guide dog school"),
    }
)


def said(text, vocabulary=COCO):
    return [mention.kind for mention in mentions(text, vocabulary)]


def test_mentions_have_the_places_of_their_words():
    text = "Three Sofas, a hot-dog;\nand the bus."
    found = mentions(text, COCO)
    assert found == [Mention("couch", 6, 11), Mention("hot dog", 15, 22), Mention("bus", 32, 35)]
    assert [text[m.start : m.end] for m in found] == ["Sofas", "hot-dog", "bus"]


def test_the_longest_name_wins_and_uses_its_words_up():
    assert said("a hot dog") == ["hot dog"]
    assert said("a dog, a hot dog and a dog") == ["dog", "hot dog", "dog"]
    assert said("he sits on the love seat") == ["couch"]


def test_mentions_keep_duplicates():
    assert said("a dog and a dog and dogs") == ["dog", "dog", "dog"]


def test_names_are_whole_words_side_by_side():
    assert said("hotdog dogma underdog") == []
    assert said("it is hot, dogs sleep") == ["dog"]
    assert said("so hot. Dog!") == ["dog"]
    assert said("the dog's bowl") == ["dog"]


def test_fix_ups_are_entries():
    assert said("a baby and a baby elephant") == ["person", "elephant"]
    assert said("the toilet seat is down") == ["toilet"]
    assert said("a train track beside a passenger train") == ["train"]
    assert said("train tracks") == []


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("women", ["person"]),
        ("buses", ["bus"]),
        ("people", ["person"]),
        ("love seats", ["couch"]),
        ("loves seat", ["chair"]),
    ],
)
def test_plurals_stand_at_the_last_word(text, kinds):
    assert said(text) == kinds


def test_plural_forms():
    words = "cat box church monkey cherry photo video leaf wife man quiz"
    forms = [" ".join(plural_forms(word)) for word in words.split()]
    assert forms == [
        "cats",
        "boxes",
        "churches",
        "monkeys",
        "cherries",
        "photos photoes",
        "videos",
        "leafs leaves",
        "wifes wives",
        "men",
        "quizes",
    ]


def test_a_written_name_goes_before_a_plural_made_by_rule():
    vocabulary = Vocabulary({"glass": (), "spectacles": ("glasses",)})
    assert said("glasses and a glass", vocabulary) == ["spectacles", "glass"]


def test_letters_outside_ascii_keep_their_places():
    vocabulary = Vocabulary.of(["Straße", "İğne"])
    text = "İ: eine STRASSE, İğne"
    found = vocabulary.mentions(text)
    assert [(m.kind, text[m.start : m.end]) for m in found] == [
        ("Straße", "STRASSE"),
        ("İğne", "İğne"),
    ]


def test_kind_of_a_name():
    assert COCO.kind_of("Love seat") == "couch"
    assert COCO.kind_of("train track") is None
    assert COCO.kind_of("zebra") is None
    assert "" not in COCO.kinds


def test_one_name_for_two_classes_is_refused():
    with pytest.raises(ValueError, match="'seat' must mean one class, it stands under 'chair'"):
        Vocabulary({"chair": ("seat",), "couch": ("seat",)})
    with pytest.raises(ValueError, match="must hold a word, got '--'"):
        Vocabulary({"chair": ("--",)})


def test_a_table_is_read_from_json(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"couch": ["sofa"], "dog": []}))
    assert said("a sofa and a dog", Vocabulary.read(path)) == ["couch", "dog"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "cannot be read"),
        ("[1]", "must be a JSON object of lists of names; it is not"),
        ('{"couch": "sofa"}', "'couch' is not"),
        ("{}", "it is not"),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    path = tmp_path / "synonyms.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Vocabulary.read(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match="cannot be read \\(No such file or directory\\)"):
        Vocabulary.read(tmp_path / "none.json")
