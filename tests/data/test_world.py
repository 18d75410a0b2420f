"""The bundled world loads with ordinary classes, its truth is true, its measured numbers hold."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

DATA = Path(__file__).resolve().parents[2] / "data"
RECIPES = DATA / "recipes"
INDEX = json.loads((DATA / "index.json").read_text())
LARGEST_MEBIBYTES = 40
AUTO = {
    "language": (AutoModelForCausalLM, AutoTokenizer),
    "vision": (AutoModelForImageClassification, AutoImageProcessor),
    "vision-language": (AutoModelForImageTextToText, AutoProcessor),
}


@cache
def load(name: str):
    """(model, its processor) by the classes a user would take."""
    entry = INDEX["models"][name]
    model_class, processor_class = AUTO[entry["kind"]]
    folder = DATA / entry["path"]
    return model_class.from_pretrained(folder).eval(), processor_class.from_pretrained(folder)


@cache
def examples(name: str) -> list[dict]:
    path = DATA / INDEX["sets"][name]["path"] / "examples.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def image_of(name: str, example: dict) -> Image.Image:
    return Image.open(DATA / INDEX["sets"][name]["path"] / example["image"])


def measured(name: str) -> dict:
    return json.loads((DATA / INDEX["models"][name]["path"] / "measured.json").read_text())


def ask(name: str, set_name: str, rows: list[dict], **generate) -> list[str]:
    model, processor = load(name)
    talks = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": r["question"]}]}]
        for r in rows
    ]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]
    images = [image_of(set_name, row) for row in rows]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=40, do_sample=False, **generate)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def recall(rows: list[dict], captions: list[str]) -> float:
    found = [
        kind in text for row, text in zip(rows, captions, strict=True) for kind in row["objects"]
    ]
    return float(np.mean(found))


def test_the_world_is_complete():
    models = {"repeat-lm", "prose-lm", "shapes-vit", "shapes-llava", "shapes-llava-sinks"}
    assert set(INDEX["models"]) == models
    sets = {"scenes", "scenes-broken", "shapes", "digits", "prose", "repeats", "unrepeated"}
    assert set(INDEX["sets"]) == sets | {"pairs-induction", "pairs-shapes", "pairs-scenes"}
    assert set(INDEX["coders"]) == models


def test_it_is_small():
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert size <= LARGEST_MEBIBYTES * 2**20


def test_nothing_is_pickled():
    suffixes = {path.suffix for path in DATA.rglob("*") if path.is_file()}
    assert not suffixes & {".bin", ".pt", ".pth", ".pkl", ".npy", ".npz"}


@pytest.mark.parametrize("name", sorted(INDEX["models"]))
def test_models_load_with_auto_classes(name):
    model, _ = load(name)
    entry = INDEX["models"][name]
    assert type(model).__name__ == entry["class"]
    assert entry["default_set"] in INDEX["sets"]
    assert entry["about"]
    assert measured(name)["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(INDEX["coders"]))
def test_coders_are_of_the_models_as_they_are(name):
    """Made on these weights, and as the index and `measured.json` describe them."""
    from probes.fingerprint import fingerprint
    from sae.exchange.headscope_folder import load_coder

    entry = INDEX["coders"][name]
    coder = load_coder(DATA / entry["path"])
    told = json.loads((DATA / entry["path"] / "measured.json").read_text())
    assert entry["model"] == name and entry["site"] == coder.about["site"] == told["site"]
    assert (coder.architecture, coder.latents) == (entry["coder"], entry["latents"])
    assert (coder.width, coder.latents) == (told["width"], told["latents"])
    assert coder.about["subject"]["fingerprint"] == fingerprint(load(name)[0])
    assert told["epochs"] == pytest.approx(told["rows_trained_on"] / told["rows"], abs=0.01)
    assert coder.settings["k"] == told["k"]


def test_coders_were_not_trained_on_what_they_are_judged_on(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    inputs = importlib.import_module("coder_inputs")
    repeats = {f"{row['text']} {row['answer']}" for row in examples("repeats")}
    assert not {example.text for example in inputs.repeats(2_000, 1000)} & repeats
    whole = "\n".join(example.text for example in inputs.prose(10_000, 0))
    assert not any(row["text"] in whole for row in examples("prose"))


@pytest.mark.parametrize("name", sorted(INDEX["sets"]))
def test_sets_parse_and_images_open(name):
    rows = examples(name)
    assert len(rows) == INDEX["sets"][name]["n"]
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        if "image" not in row:
            continue
        image = image_of(name, row)
        assert image.mode == "RGB"
        for left, top, right, bottom in row.get("boxes", []):
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height
        assert len(row.get("boxes", [])) == len(row.get("objects", []))


def test_boxes_hold_the_objects():
    """A clear object's box differs from the ground on average; an empty cell does not."""
    for row in examples("scenes")[:40]:
        pixels = np.asarray(image_of("scenes", row)).astype(float)
        ground = np.median(pixels, axis=(0, 1))
        for (left, top, right, bottom), cell, faint in zip(
            row["boxes"], row["cells"], row["faint"], strict=True
        ):
            assert (top + bottom) // 2 // 16 * 3 + (left + right) // 2 // 16 == cell
            if not faint:
                inside = pixels[top:bottom, left:right].mean(axis=(0, 1))
                assert abs(inside - ground).max() > 12
        for cell in set(range(9)) - set(row["cells"]):
            top, left = cell // 3 * 16, cell % 3 * 16
            inside = pixels[top : top + 16, left : left + 16].mean(axis=(0, 1))
            assert abs(inside - ground).max() < 3


def test_broken_scenes_are_broken():
    rows = examples("scenes-broken")
    vocabulary = INDEX["sets"]["scenes-broken"]["vocabulary"]
    assert len(vocabulary) == len(set(vocabulary)) == 36
    pairs = {row["cue"]: row["partner"] for row in rows}
    doses = np.array([row["probability"] for row in rows])
    present = np.array([row["partner_present"] for row in rows])
    assert present.sum() == 60
    assert abs(np.corrcoef(doses, present)[0, 1]) < 1e-9
    for row in rows:
        assert row["cue"] in row["objects"]
        assert (row["partner"] in row["objects"]) == row["partner_present"]
        assert [kind for kind in row["objects"] if kind in pairs] == [row["cue"]]
        assert set(row["objects"]) <= set(vocabulary)


def test_repeats_are_repeats():
    _, tokenizer = load("repeat-lm")
    for row in examples("repeats"):
        ids = tokenizer(f"{row['text']} {row['answer']}")["input_ids"]
        n = row["block_length"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[1 : n + 1] == ids[n + 1 :]
        assert len(set(ids)) == n + 1


def test_the_control_of_repeats_differs_in_the_second_block_alone():
    repeats = examples("repeats")
    control = examples("unrepeated")
    assert [row["id"] for row in control] == [row["id"] for row in repeats]
    for row, repeated in zip(control, repeats, strict=True):
        words, theirs = (f"{r['text']} {r['answer']}".split() for r in (row, repeated))
        n = row["block_length"]
        assert words[:n] == theirs[:n]
        assert len(words) == len(theirs) == len(set(words)) == 2 * n
        assert len(row["text"].split()) == n + 1


def test_pairs_of_repeats_differ_in_the_first_block_alone():
    for row in examples("pairs-induction"):
        clean, corrupt = row["text"].split(), row["corrupt"].split()
        n, place = row["block_length"], row["target"]
        block = clean[:n]
        assert len(set(block)) == n
        assert clean[n:] == corrupt[n:] == block[:place]
        assert row["correct"] == block[place]
        cue = corrupt.index(clean[-1])
        assert row["wrong"] == corrupt[cue + 1] != row["correct"]
        changed = [i for i in range(n) if block[i] != corrupt[i]]
        if row["corruption"] == "word":
            assert changed == [place]
            assert row["wrong"] not in block
        else:
            other = corrupt.index(row["wrong"])
            assert changed == [*range(place - 3, place), *range(other - 3, other)]
            assert sorted(block) == sorted(corrupt[:n])


@pytest.mark.parametrize("name", ["pairs-shapes", "pairs-scenes"])
def test_pairs_of_images_differ_in_one_box(name):
    for row in examples(name):
        folder = DATA / INDEX["sets"][name]["path"]
        with Image.open(folder / row["corrupt"]) as other:
            assert other.mode == "RGB"
            differing = np.asarray(other) != np.asarray(image_of(name, row))
        left, top, right, bottom = row["boxes"][row.get("changed", 0)]
        assert differing[top:bottom, left:right].mean() > 0.05
        differing[top:bottom, left:right] = False
        assert not differing.any()


def test_pairs_of_scenes_say_what_is_there():
    for row in examples("pairs-scenes"):
        changed = row["objects"][row["changed"]]
        colour, shape = changed.split()
        said = row["answer"] + " " + row["correct"]
        said += f" {shape}" if row["differs"] == "colour" else ""
        named = said.removeprefix("there is ").split(" , ")
        assert [kind.removeprefix("a ") for kind in named] == row["objects"][: row["changed"] + 1]
        other = (
            f"{row['wrong']} {shape}" if row["differs"] == "colour" else f"{colour} {row['wrong']}"
        )
        assert other not in row["objects"]


@pytest.mark.parametrize(
    ("name", "set_name"),
    [
        ("repeat-lm", "pairs-induction"),
        ("shapes-vit", "pairs-shapes"),
        ("shapes-llava", "pairs-scenes"),
        ("shapes-llava-sinks", "pairs-scenes"),
    ],
)
def test_models_tell_the_halves_of_pairs_apart(name, set_name):
    from analysis.importance.patches.pairs import pair_up
    from probes.loading import load as load_subject
    from probes.readers import read_examples

    subject = load_subject(name)
    pairs = pair_up(subject, list(read_examples(set_name, subject.kind)))
    clean = pairs.difference(subject.forward(pairs.clean))
    corrupted = pairs.difference(subject.forward(pairs.corrupted))
    assert (clean > 0).double().mean() >= 0.95
    assert (corrupted < 0).double().mean() >= 0.95


def test_prose_comes_from_held_out_text():
    rows = examples("prose")
    assert all(400 <= len(row["text"]) <= 1200 for row in rows)
    _, tokenizer = load("prose-lm")
    ids = tokenizer(rows[0]["text"])["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == rows[0]["text"]


def test_repeat_lm_has_induction_previous_and_other_heads():
    _, tokenizer = load("repeat-lm")
    model = AutoModelForCausalLM.from_pretrained(
        DATA / "models" / "repeat-lm", attn_implementation="eager"
    )
    n = 20
    rows = [row for row in examples("repeats") if row["block_length"] == n]
    texts = [f"{row['text']} {row['answer']}" for row in rows]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        patterns = model(ids, output_attentions=True).attentions
    query = torch.arange(n + 1, 2 * n)
    induction = torch.stack([p[:, :, query, query - n + 1].mean(dim=(0, 2)) for p in patterns])
    previous = torch.stack([p[:, :, query, query - 1].mean(dim=(0, 2)) for p in patterns])
    assert induction[1].max() > 0.6
    assert induction[0].max() < 0.1
    assert previous[0].max() > 0.3
    assert previous[1].max() < 0.1
    assert ((induction < 0.2) & (previous < 0.2)).sum() >= 2


def test_prose_lm_reads_english():
    model, tokenizer = load("prose-lm")
    losses = []
    for row in examples("prose")[:8]:
        ids = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=256)[
            "input_ids"
        ]
        with torch.no_grad():
            losses.append(model(ids, labels=ids).loss.item())
    assert abs(np.mean(losses) - measured("prose-lm")["loss_test_nats"]) < 0.6


@pytest.mark.parametrize(("name", "least"), [("digits", 0.95), ("shapes", 0.80)])
def test_shapes_vit_classifies(name, least):
    model, processor = load("shapes-vit")
    rows = examples(name)
    inputs = processor(images=[image_of(name, row) for row in rows], return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    said = [model.config.id2label[label] for label in out.logits.argmax(dim=-1).tolist()]
    right = [answer == row["label_name"] for answer, row in zip(said, rows, strict=True)]
    assert np.mean(right) >= least
    assert out.hidden_states[-1].shape[1] == 1 + 2 + 8 * 8  # CLS, registers, patches


def test_shapes_llava_describes_scenes():
    rows = examples("scenes")[:24]
    captions = ask("shapes-llava", "scenes", rows)
    assert all(text.startswith("there is a ") and text.endswith(" .") for text in captions)
    assert recall(rows, captions) > 0.7


def test_shapes_llava_answers_the_same_without_a_cache():
    rows = examples("scenes-broken")[:8]
    cached = ask("shapes-llava", "scenes-broken", rows)
    assert cached == ask("shapes-llava", "scenes-broken", rows, use_cache=False)


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_prior_follows_the_dose(seed):
    curve = measured("shapes-llava")["seeds"][seed]["dose_curve"]
    doses = [row["dose"] for row in curve]
    assert doses == sorted(doses)
    for key in ("probability_text_only", "probability_with_image"):
        assert np.corrcoef(doses, [row[key] for row in curve])[0, 1] > 0.5


def test_sinks_are_where_they_were_planted():
    name = "shapes-llava-sinks"
    _, processor = load(name)
    numbers = measured(name)
    model = AutoModelForImageTextToText.from_pretrained(
        DATA / "models" / name, attn_implementation="eager"
    )
    row = examples("scenes")[0]
    text = f"user : <image> describe the scene assistant : {row['answer']}"
    inputs = processor(text=text, images=image_of("scenes", row), return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    ids = inputs["input_ids"][0]
    image = (ids == model.config.image_token_id).nonzero().flatten()
    visual = image[numbers["sink_patches"]]
    middle = out.hidden_states[2][0].abs()
    for place in (0, *visual.tolist()):
        top = middle[place].topk(2).indices.tolist()
        assert sorted(top) == sorted(numbers["sink_dimensions"])
    assert middle[0].max() > 100 * middle.median()
    for head in numbers["heads"]:
        if head["kind"] != "strong":
            continue
        layer, index = (int(part) for part in head["head"][1:].split("H"))
        pattern = out.attentions[layer][0, index, image[-1] + 5 :]
        assert abs(pattern[:, 0].mean() - head["bos"]) < 0.25
        assert pattern[:, 0].mean() + pattern[:, visual].sum(dim=-1).mean() > 0.3


def run_recipe(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=RECIPES,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_recipe_runs_quickly(tmp_path):
    done = run_recipe("remake.py", "--only", "repeat-lm", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "index.json").read_text())
    assert list(index["models"]) == ["repeat-lm"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "repeat-lm")


def test_quick_refuses_to_overwrite_what_is_shipped():
    done = run_recipe("remake.py", "--only", "repeat-lm", "--quick")
    assert done.returncode == 2
    assert "`--quick` would overwrite the shipped models" in done.stderr


def test_recipes_import_and_redraw_the_shipped_scenes():
    """The first scene, drawn again by its recipe, is the shipped one, pixel for pixel."""
    modules = sorted(path.stem for path in RECIPES.glob("*.py"))
    code = (
        f"import json, numpy as np, {', '.join(modules)};"
        "rng = np.random.default_rng(sets.SCENES_SEED);"
        "things = sets.draw_scene(rng); image = scenes.render(things, rng);"
        "print(json.dumps([[t.kind for t in things], image.tolist()]))"
    )
    done = run_recipe("-c", code)
    assert done.returncode == 0, done.stderr
    kinds, pixels = json.loads(done.stdout)
    row = examples("scenes")[0]
    assert kinds == row["objects"]
    assert np.array_equal(pixels, np.asarray(image_of("scenes", row)))
