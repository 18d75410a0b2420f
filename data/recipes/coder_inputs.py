"""What the bundled coders are trained on: inputs as their models saw them in training, drawn anew.

Ids begin with `fresh`, so none is an example of a bundled set.
"""

import numpy as np
import scenes
import torch

from probes.inputs import Example

DESCRIBED = 3  # of four scenes; of the fourth a question is asked


def repeats(count: int, seed: int) -> list[Example]:
    """Texts of repeat-lm's four kinds, half of them a block said twice, each of 16 to 64 words."""
    import repeat_lm

    generator = torch.Generator().manual_seed(seed)
    kinds = (repeat_lm.frequency, repeat_lm.echo, repeat_lm.first)
    found = []
    for index in range(count):
        if index % 2 == 0:
            length = int(torch.randint(8, repeat_lm.LENGTH // 2 + 1, (), generator=generator))
            ids = repeat_lm.repeated(1, length, generator)
        else:
            ids = kinds[index // 2 % len(kinds)](1, generator)
        words = [repeat_lm.WORDS[token - repeat_lm.SPECIAL] for token in ids[0].tolist()]
        found.append(Example(f"fresh-{index}", text=" ".join(words)))
    return found


def prose(count: int, seed: int) -> list[Example]:
    """The documents that prose-lm was trained on, all of them; modules of `prose` are not there."""
    from prose_corpus import collect

    return [Example(f"fresh-{i}", text=text) for i, text in enumerate(collect()[0][:count])]


def single_images(count: int, seed: int) -> list[Example]:
    """Half rendered shapes, half digits of the training part, as shapes-vit saw them."""
    from single_shapes import LABELS, digit_split, draw_digit, draw_single

    rng, (images, digits) = np.random.default_rng(seed), digit_split()[0]
    found = []
    for index in range(count):
        if index % 2 == 0:
            pixels, label, _ = draw_single(rng)
        else:
            chosen = int(rng.integers(len(images)))
            pixels, label = draw_digit(images[chosen], rng), LABELS.index(str(digits[chosen]))
        found.append(Example(f"fresh-{index}", image=pixels, label=label))
    return found


def described_scenes(count: int, seed: int) -> list[Example]:
    """Scenes as in training with what people say of them; of one in four a yes/no question."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        things = scenes.place(scenes.draw_kinds(rng), rng)
        image, kinds = scenes.render(things, rng), [thing.kind for thing in things]
        if index % (DESCRIBED + 1) < DESCRIBED:
            question, answer = "describe the scene", scenes.caption(kinds, rng)
        else:
            present = bool(rng.random() < 0.5)
            pool = kinds if present else [kind for kind in scenes.KINDS if kind not in kinds]
            question = f"is there a {pool[int(rng.integers(len(pool)))]} ?"
            answer = "yes" if present else "no"
        found.append(Example(f"fresh-{index}", image=image, question=question, answer=answer))
    return found
