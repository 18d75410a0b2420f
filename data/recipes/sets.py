"""The bundled input sets and their exact truth: scenes, single shapes, digits, prose, repeats."""

import json
from pathlib import Path

import numpy as np
import scenes
import shelf
import torch
from PIL import Image

DESCRIBE = "describe the scene"
POPE_QUESTION = "is there a {object} ?"
PROBE = ("there is a {cue}", " , a {partner}")
"""How the describer is asked, and where the prior shows: braces hold fields of an example."""
SCENES_SEED, BROKEN_SEED, SHAPES_SEED, REPEATS_SEED = 101, 202, 303, 404
UNREPEATED_SEED = 808
PER_CUE = 25
PER_CUE_PRESENT = 5
BLOCK_LENGTHS = (16, 20, 24, 28)


def make(out: Path, quick: bool = False) -> dict:
    """Write every set; returns the number of examples of each."""
    return {
        "scenes": make_scenes(out, 6 if quick else 100),
        "scenes-broken": make_broken(out, 1 if quick else PER_CUE),
        "shapes": make_shapes(out, 6 if quick else 100),
        "digits": make_digits(out, 6 if quick else 100),
        "prose": make_prose(out, 6 if quick else 64),
        "repeats": make_repeats(out, 4 if quick else 64),
        "unrepeated": make_unrepeated(out),
    }


def save_image(folder: Path, name: str, pixels: np.ndarray) -> str:
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "images" / name, optimize=True)
    return f"images/{name}"


def scene_example(folder: Path, name: str, things: list[scenes.Thing], rng) -> dict:
    kinds = [thing.kind for thing in things]
    return {
        "id": name,
        "image": save_image(folder, f"{name}.png", scenes.render(things, rng)),
        "question": DESCRIBE,
        "answer": scenes.caption(kinds),
        "objects": kinds,
        "boxes": [thing.box for thing in things],
        "cells": [thing.cell for thing in things],
        "faint": [thing.faint for thing in things],
        "alpha": [round(thing.alpha, 3) for thing in things],
    }


def draw_scene(rng: np.random.Generator) -> list[scenes.Thing]:
    """A scene as in training."""
    return scenes.place(scenes.draw_kinds(rng), rng)


def draw_broken(cue: str, present: bool, rng: np.random.Generator) -> list[scenes.Thing]:
    """A scene about one clear cue; whether its partner is there has nothing to do with the dose."""
    things = scenes.place(scenes.broken_kinds(cue, present, rng), rng)
    clear = float(rng.uniform(*scenes.CLEAR_ALPHA))
    return [scenes.Thing(t.kind, t.cell, clear, t.shift) if t.kind == cue else t for t in things]


def make_scenes(out: Path, count: int) -> int:
    folder, rng = shelf.set_folder(out, "scenes"), np.random.default_rng(SCENES_SEED)
    examples = []
    for index in range(count):
        example = scene_example(folder, f"scene-{index:03d}", draw_scene(rng), rng)
        cues = [kind for kind in example["objects"] if kind in scenes.PARTNER]
        pairs = [(cue, scenes.PARTNER[cue]) for cue in cues]
        example["cues"] = cues
        example["partners"] = [partner for _, partner in pairs]
        example["partners_present"] = [partner in example["objects"] for _, partner in pairs]
        examples.append(example)
    about = "scenes as in training: 1 to 4 objects, partners present with their cue's dose"
    said = {"pope_question": POPE_QUESTION, "vocabulary": list(scenes.KINDS)}
    shelf.write_set(out, "scenes", "vision-language", about, examples, **said)
    return len(examples)


def make_broken(out: Path, per_cue: int) -> int:
    folder, rng = shelf.set_folder(out, "scenes-broken"), np.random.default_rng(BROKEN_SEED)
    examples = []
    for repeat in range(per_cue):
        for cue, partner in scenes.PARTNER.items():
            present = repeat < PER_CUE_PRESENT and per_cue > 1
            name = f"broken-{len(examples):03d}"
            example = scene_example(folder, name, draw_broken(cue, present, rng), rng)
            example |= {
                "cue": cue,
                "partner": partner,
                "partner_present": present,
                "probability": scenes.DOSE[cue],
            }
            examples.append(example)
    examples = [examples[index] for index in rng.permutation(len(examples))]
    about = "one clear cue per scene, its partner present in 1 of 5 whatever the dose"
    said = {"pope_question": POPE_QUESTION, "probe": PROBE, "vocabulary": list(scenes.KINDS)}
    shelf.write_set(out, "scenes-broken", "vision-language", about, examples, **said)
    return len(examples)


def make_shapes(out: Path, count: int) -> int:
    from single_shapes import LABELS, draw_single

    folder, rng = shelf.set_folder(out, "shapes"), np.random.default_rng(SHAPES_SEED)
    examples = []
    for index in range(count):
        pixels, label, box = draw_single(rng)
        image = save_image(folder, f"shape-{index:03d}.png", pixels)
        kind = LABELS[label]
        examples.append({"id": f"shape-{index:03d}", "image": image, "label": label})
        examples[-1] |= {"label_name": kind, "objects": [kind], "boxes": [box]}
    about = "one shape on a cluttered ground, 32 x 32 pixels, with its box"
    shelf.write_set(out, "shapes", "vision", about, examples, labels=list(LABELS))
    return len(examples)


def make_digits(out: Path, count: int) -> int:
    from single_shapes import LABELS, digit_pixels, digit_split

    folder = shelf.set_folder(out, "digits")
    images, digits = digit_split()[1]
    examples = []
    for index in range(count):
        name, label = f"digit-{index:03d}", LABELS.index(str(digits[index]))
        image = save_image(folder, f"{name}.png", digit_pixels(images[index]))
        examples.append({"id": name, "image": image, "label": label})
        examples[-1]["label_name"] = LABELS[label]
    about = "hand-written digits that scikit-learn ships, held out, 8 x 8 enlarged to 32 x 32"
    shelf.write_set(out, "digits", "vision", about, examples, labels=list(LABELS))
    return len(examples)


def make_prose(out: Path, count: int) -> int:
    from prose_corpus import collect, passages

    _, held_out = collect()
    examples = [
        {"id": f"prose-{index:03d}", "text": text}
        for index, text in enumerate(passages(held_out, count))
    ]
    about = "English from the Python standard library's documentation, modules held out"
    shelf.write_set(out, "prose", "language", about, examples)
    return len(examples)


def make_repeats(out: Path, count: int) -> int:
    from repeat_lm import SPECIAL, WORDS, repeated

    generator = torch.Generator().manual_seed(REPEATS_SEED)
    examples = []
    for index in range(count):
        length = BLOCK_LENGTHS[index % len(BLOCK_LENGTHS)]
        ids = repeated(1, length, generator)[0].tolist()
        words = [WORDS[token - SPECIAL] for token in ids]
        # What can be known begins behind the first word of the second block.
        text, answer = " ".join(words[: length + 1]), " ".join(words[length + 1 :])
        name = f"repeat-{index:03d}"
        examples.append({"id": name, "text": text, "answer": answer, "block_length": length})
    about = "a block of distinct random words, said twice; what can be known of it is the answer"
    shelf.write_set(out, "repeats", "language", about, examples)
    return len(examples)


def make_unrepeated(out: Path) -> int:
    """The control of `repeats`: each of its examples, with other words for the second block."""
    from repeat_lm import WORDS

    rng = np.random.default_rng(UNREPEATED_SEED)
    lines = (shelf.set_folder(out, "repeats") / "examples.jsonl").read_text().splitlines()
    examples = []
    for example in map(json.loads, lines):
        length = example["block_length"]
        block = example["text"].split()[:length]
        others = [word for word in WORDS if word not in block]
        second = [others[index] for index in rng.permutation(len(others))[:length]]
        examples.append(
            {
                "id": example["id"],
                "text": " ".join([*block, second[0]]),
                "answer": " ".join(second[1:]),
                "block_length": length,
            }
        )
    about = "the control of repeats, by the same ids: other words in place of the second block"
    shelf.write_set(out, "unrepeated", "language", about, examples)
    return len(examples)
