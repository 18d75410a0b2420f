"""Pairs of inputs that differ in one thing, with the word or class that this changes.

- `pairs-induction`, for repeat-lm: a block of distinct words, said again up to a point. Corrupted
  in the first block alone: its next word replaced by a new one (`word`: what an induction head
  copies), or the words before two of its words exchanged (`context`: where it looks).
- `pairs-shapes`, for shapes-vit: a shape on clutter, and another shape at the same place, of the
  same size, colour, clutter and noise; each of the 30 ordered pairs of shapes once.
- `pairs-scenes`, for shapes-llava: a scene, its caption up to a colour or a shape, and the same
  scene, noise included, in which that object has another colour or shape. All objects are clear
  and of kinds that the planted prior says nothing about.
"""

from itertools import permutations
from pathlib import Path

import numpy as np
import scenes
import shelf
from sets import DESCRIBE, save_image

INDUCTION_SEED, SHAPES_SEED, SCENES_SEED = 505, 606, 707
BLOCK_LENGTHS = (16, 20, 24, 28)
CONTEXT_WORDS = 3  # layer 0 of repeat-lm looks at several previous words
LEVELS = 4  # images keep every fourth level: half the bytes, and less than the noise
COUNTS = {"pairs-induction": 64, "pairs-shapes": 30, "pairs-scenes": 24}


def make(out: Path, quick: bool = False) -> dict:
    """Write the three sets; returns the number of pairs of each."""
    counts = dict.fromkeys(COUNTS, 4) if quick else COUNTS
    return {
        "pairs-induction": make_induction(out, counts["pairs-induction"]),
        "pairs-shapes": make_shapes(out, counts["pairs-shapes"]),
        "pairs-scenes": make_scenes(out, counts["pairs-scenes"]),
    }


def draw_induction(length: int, corruption: str, rng: np.random.Generator) -> dict:
    """A block of distinct words, its beginning again, and the block corrupted."""
    from repeat_lm import WORDS

    drawn = [str(word) for word in rng.permutation(WORDS)[: length + 1]]
    block, spare = drawn[:-1], drawn[-1]
    changed = list(block)
    if corruption == "word":
        place = int(rng.integers(CONTEXT_WORDS, length))
        changed[place] = wrong = spare
    else:
        # Two places, both with words of their own before them; the earlier one is asked for.
        place = int(rng.integers(CONTEXT_WORDS, length - CONTEXT_WORDS - 1))
        other = int(rng.integers(place + CONTEXT_WORDS + 1, length))
        wrong = block[other]
        first, second = (slice(end - CONTEXT_WORDS, end) for end in (place, other))
        changed[first], changed[second] = block[second], block[first]
    return {
        "text": " ".join([*block, *block[:place]]),
        "corrupt": " ".join([*changed, *block[:place]]),
        "correct": block[place],
        "wrong": wrong,
        "corruption": corruption,
        "block_length": length,
        "target": place,
    }


def make_induction(out: Path, count: int) -> int:
    rng = np.random.default_rng(INDUCTION_SEED)
    shelf.set_folder(out, "pairs-induction")
    examples = []
    for index in range(count):
        length = BLOCK_LENGTHS[index // 2 % len(BLOCK_LENGTHS)]
        pair = draw_induction(length, ("word", "context")[index % 2], rng)
        examples.append({"id": f"induction-{index:03d}", **pair})
    about = "a block of words said again up to a point; corrupt: another word would come next"
    shelf.write_set(out, "pairs-induction", "language", about, examples)
    return len(examples)


def make_shapes(out: Path, count: int) -> int:
    from single_shapes import LABELS, draw_single

    folder, rng = shelf.set_folder(out, "pairs-shapes"), np.random.default_rng(SHAPES_SEED)
    ordered = list(permutations(range(len(scenes.SHAPES)), 2))
    examples = []
    for index in range(count):
        label, other = ordered[index]
        seed, name = int(rng.integers(2**32)), f"shape-{index:03d}"
        halves = [draw_single(np.random.default_rng(seed), shape) for shape in (label, other)]
        images = [
            save_image(folder, f"{name}-{half}.png", pixels // LEVELS * LEVELS)
            for half, (pixels, _, _) in zip(("clean", "corrupt"), halves, strict=True)
        ]
        examples.append({"id": name, "image": images[0], "corrupt": images[1]})
        examples[-1] |= {"correct": LABELS[label], "wrong": LABELS[other], "label": label}
        examples[-1] |= {"objects": [LABELS[label]], "boxes": [halves[0][2]]}
    about = "one shape on a cluttered ground; corrupt: another shape in the same place and colour"
    shelf.write_set(out, "pairs-shapes", "vision", about, examples, labels=list(LABELS))
    return len(examples)


def draw_scene(differs: str, rng: np.random.Generator) -> tuple[list[scenes.Thing], int, str]:
    """Clear, neutral things in reading order, which of them is changed, and the kind it becomes."""
    neutral = [tuple(kind.split()) for kind in scenes.NEUTRAL]
    same = 1 if differs == "colour" else 0
    choices = [
        (one, other)
        for one in neutral
        for other in neutral
        if one != other and one[same] == other[same]
    ]
    one, other = choices[rng.integers(len(choices))]
    rest = [kind for kind in neutral if kind not in (one, other)]
    beside = [rest[index] for index in rng.permutation(len(rest))[: int(rng.integers(0, 3))]]
    things = scenes.place([" ".join(kind) for kind in (one, *beside)], rng, faint=0.0)
    changed = [thing.kind for thing in things].index(" ".join(one))
    return things, changed, " ".join(other)


def make_scenes(out: Path, count: int) -> int:
    folder, rng = shelf.set_folder(out, "pairs-scenes"), np.random.default_rng(SCENES_SEED)
    examples = []
    for index in range(count):
        differs, name = ("colour", "shape")[index % 2], f"scene-{index:03d}"
        things, changed, kind = draw_scene(differs, rng)
        thing, seed = things[changed], int(rng.integers(2**32))
        other = [*things]
        other[changed] = scenes.Thing(kind, thing.cell, thing.alpha, thing.shift)
        images = []
        for half, shown in (("clean", things), ("corrupt", other)):
            pixels = scenes.render(shown, np.random.default_rng(seed)) // LEVELS * LEVELS
            images.append(save_image(folder, f"{name}-{half}.png", pixels))
        kinds = [shown.kind for shown in things]
        before = [f"a {named} ," for named in kinds[:changed]]
        word = 0 if differs == "colour" else 1
        said = ["there is", *before, "a", *thing.kind.split()[:word]]
        examples.append(
            {
                "id": name,
                "image": images[0],
                "corrupt": images[1],
                "question": DESCRIBE,
                "answer": " ".join(said),
                "correct": thing.kind.split()[word],
                "wrong": kind.split()[word],
                "differs": differs,
                "changed": changed,
                "objects": kinds,
                "boxes": [shown.box for shown in things],
                "cells": [shown.cell for shown in things],
            }
        )
    about = "a scene and its caption up to a word; corrupt: that object in another colour or shape"
    shelf.write_set(
        out, "pairs-scenes", "vision-language", about, examples, vocabulary=list(scenes.KINDS)
    )
    return len(examples)
