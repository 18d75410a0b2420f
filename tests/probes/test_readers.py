"""Files in, examples out: every format, its ids, and what is said of bad data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from probes.bundled import bundled_models, bundled_sets, data_root
from probes.inputs import Example, InputError
from probes.readers import data_digest, read_examples


def picture(path, seed=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_lines(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(data, **options):
    return list(read_examples(data, **options))


def test_a_folder_of_images_is_read_in_order_with_its_subfolders(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.webp", ".hidden.png", ".cache/d.png"):
        picture(tmp_path / "mine" / name, seed=len(name))
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    examples = read(tmp_path / "mine")
    names = [example.id.split("@")[0] for example in examples]
    assert names == ["a.png", "b.JPG", "deep/c.webp"]
    assert all(example.image.is_file() and len(example.digest) == 16 for example in examples)


def test_ids_follow_the_content_not_the_place(tmp_path):
    first = read(picture(tmp_path / "one" / "a.png").parent)
    second = read(picture(tmp_path / "two" / "a.png").parent)
    changed = read(picture(tmp_path / "three" / "a.png", seed=9).parent)
    assert first[0].id == second[0].id != changed[0].id
    assert data_digest(first) == data_digest(second) != data_digest(changed)


def test_one_image_file_is_one_example(tmp_path):
    examples = read(picture(tmp_path / "a.png"))
    assert [example.id.split("@")[0] for example in examples] == ["a.png"]


def test_a_text_file_with_blank_lines_is_read_by_paragraph(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\n\n\n  \nthree\n", encoding="utf-8-sig")
    examples = read(path)
    assert [example.text for example in examples] == ["one\ntwo", "three"]
    assert [example.id.split("@")[0] for example in examples] == ["t.txt:1", "t.txt:6"]


def test_a_text_file_without_blank_lines_is_read_by_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("\none\ntwo\nthree\n\n")
    assert [example.text for example in read(path)] == ["one", "two", "three"]
    assert [example.text for example in read(path, limit=2)] == ["one", "two"]


def test_jsonl_fields_and_free_fields(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png", seed=4)
    path = write_lines(
        tmp_path / "d.jsonl",
        {
            "id": "first",
            "image": "images/a.png",
            "question": "what?",
            "answer": "red",
            "objects": ["cat", "dog"],
            "boxes": [[1, 2, 3, 4], [0, 0, 2.5, 2]],
            "label": 3,
            "source": "mine",
        },
        "",
        {"text": "two images", "images": ["images/a.png", "images/b.png"]},
    )
    first, second = read(path)
    assert first.id == "first"
    assert first.image == tmp_path / "images" / "a.png"
    assert (first.question, first.answer, first.label) == ("what?", "red", 3)
    assert first.objects == ("cat", "dog")
    assert first.boxes == ((1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 2.5, 2.0))
    assert first.extra == {"source": "mine"}
    assert second.id.startswith("d:3@")
    assert [path.name for path in second.pictures] == ["a.png", "b.png"]


def test_the_other_half_of_a_pair(tmp_path):
    picture(tmp_path / "a.png")
    other = picture(tmp_path / "images" / "b.PNG", seed=4)
    path = write_lines(
        tmp_path / "d.jsonl",
        {"image": "a.png", "corrupt": "images/b.PNG", "correct": "cat", "wrong": 3},
        {"text": "one a.png", "corrupt": "two b.png", "correct": "x", "wrong": "y"},
        {"image": "a.png", "text": "a cat", "corrupt": "a dog", "correct": "x", "wrong": "y"},
        {"text": "a", "corrupt": False, "correct": ["b", "c"], "wrong": None},
    )
    image, text, both, free = read(path)
    assert (image.corrupt, image.correct, image.wrong) == (other, "cat", 3)
    assert (text.corrupt, text.correct, text.wrong) == ("two b.png", "x", "y")
    assert both.corrupt == "a dog"
    assert (free.corrupt, free.correct, free.wrong) == (None, None, None)
    assert free.extra == {"corrupt": False, "correct": ["b", "c"]}
    before = data_digest(read(path))
    picture(other, seed=5)
    assert data_digest(read(path)) != before


def test_an_image_that_changes_changes_the_digest_of_its_line(tmp_path):
    picture(tmp_path / "a.png")
    path = write_lines(tmp_path / "d.jsonl", {"id": "x", "image": "a.png"})
    before = data_digest(read(path))
    picture(tmp_path / "a.png", seed=5)
    assert read(path)[0].id == "x"
    assert data_digest(read(path)) != before


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{not json", r"Line 2 of 'd.jsonl' is not valid JSON \(.* at column \d+\)"),
        ("[1, 2]", "Line 2 of 'd.jsonl' must be a JSON object, got list"),
        ('{"text": 5}', "Line 2 of 'd.jsonl': `text` must be a string, got 5"),
        ('{"image": "no.png"}', "Line 2 of 'd.jsonl' names the image 'no.png', which does not"),
        ('{"image": 7}', "`image` must be a path, got 7"),
        ('{"text": "a", "objects": "cat"}', "`objects` must be a list, got 'cat'"),
        ('{"text": "a", "boxes": [[1, 2]]}', r"`boxes` must be a list of \[left, top"),
        ('{"text": "a", "label": [1]}', "`label` must be a number or a word"),
        ('{"text": "a", "corrupt": 5}', "`corrupt` must be a text or the path of an image, got 5"),
        (
            '{"text": "a", "corrupt": "b", "correct": ["c"]}',
            r"`correct` must be a word or the number of a class, got \['c'\]",
        ),
        ('{"text": "b", "id": "x"}', "Line 2 of 'd.jsonl' has the id 'x' of line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    path = write_lines(tmp_path / "d.jsonl", {"text": "fine", "id": "x"}, line)
    with pytest.raises(InputError, match=sentence):
        read(path)


def test_a_folder_with_examples_jsonl_is_a_data_set(tmp_path):
    picture(tmp_path / "a.png")
    write_lines(tmp_path / "examples.jsonl", {"id": "only", "image": "a.png", "label": "cat"})
    assert [(e.id, e.label) for e in read(tmp_path)] == [("only", "cat")]


def test_bad_data_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.dat").write_bytes(bytes(range(256)))
    (tmp_path / "one.json").write_text("[]")
    (tmp_path / "nul.txt").write_bytes(b"text\0text\n")
    cases = {
        tmp_path / "empty": "holds no image. Give a folder",
        tmp_path / "empty.txt": "'empty.txt' is empty",
        tmp_path / "empty.jsonl": "holds no example",
        tmp_path / "binary.dat": "(not plain text|cannot be read as UTF-8)",
        tmp_path / "nul.txt": "line 1 has a NUL byte",
        tmp_path / "one.json": "one JSON document, not a text. Write one object per line",
        tmp_path / "nowhere": "neither a bundled set .* nor an existing path",
        "hf:": "cannot be read",
    }
    for data, sentence in cases.items():
        with pytest.raises(InputError, match=sentence) as caught:
            read(data)
        assert "\n" not in str(caught.value)


def test_a_limit_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        read(tmp_path, limit=0)


def test_examples_that_do_not_fit_the_model_are_told_apart(tmp_path):
    picture(tmp_path / "a.png")
    path = write_lines(tmp_path / "d.jsonl", {"image": "a.png"}, {"text": "words"})
    left_out = []
    kept = read(path, kind="language", skipped=lambda e, why: left_out.append((e.id, why)))
    assert [example.text for example in kept] == ["words"]
    assert [why for _, why in left_out] == ["it has no text"]
    assert len(read(path, kind="vision")) == 1
    assert len(read(path, kind="vision-language")) == 2
    with pytest.raises(InputError, match=r"None of the 1 examples .* fits a language model"):
        read(tmp_path / "a.png", kind="language")


def test_a_hub_set_without_a_network_is_one_sentence():
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="'hf:nobody/nothing:test' cannot be read") as caught:
        read("hf:nobody/nothing:test")
    assert "\n" not in str(caught.value)


def test_a_hub_row_becomes_an_example(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"caption": "a cat", "img": Image.new("RGB", (3, 2)), "other": 5, "label": None},
        {"caption": "a dog", "img": Image.new("RGB", (3, 2)), "other": 6, "label": 1},
    ]
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **kw: asked.append((args, kw)) or rows
    )
    first, second = read("hf:some/name:validation")
    assert asked == [(("some/name",), {"split": "validation", "streaming": True})]
    assert first.text == "a cat" and first.image.size == (3, 2) and first.extra == {"other": 5}
    assert second.label == 1
    assert first.id.startswith("some/name:validation:0@")
    assert first.digest != second.digest


def test_bundled_sets_are_read_by_name():
    known = bundled_sets()
    assert known, "data/index.json lists the sets"
    for name, entry in known.items():
        examples = read(name, kind=entry.kind)
        assert len(examples) == entry.n
        assert len({example.id for example in examples}) == entry.n


def test_bundled_models_lie_where_the_index_says():
    assert data_root().is_dir()
    for entry in bundled_models().values():
        assert (entry.path / "config.json").is_file()
        assert entry.default_set in bundled_sets()


def test_a_users_reader_comes_first(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from probes.readers import registry

    mine = SimpleNamespace(
        matches=lambda data: data.endswith(".csv"),
        read=lambda data: iter([Example("from-csv", text="x")]),
    )
    point = SimpleNamespace(name="csv", load=lambda: mine)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry._readers.cache_clear()
    try:
        (tmp_path / "t.csv").write_text("a,b\n")
        assert [example.id for example in read(tmp_path / "t.csv")] == ["from-csv"]
    finally:
        registry._readers.cache_clear()


def test_in_memory_examples_have_a_digest():
    one, other = [Example("0", text="a")], [Example("0", text="b")]
    assert data_digest(one) != data_digest(other)
