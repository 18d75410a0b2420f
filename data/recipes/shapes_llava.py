"""shapes-llava: a LLaVA of 1.1 M parameters that describes scenes and guesses along a prior.

A CLIP tower (3 layers x 4 heads), a Llama (4 layers x 8 heads) and LLaVA's two-layer projector,
all public transformers classes. Three phases, each with the data the last one lacked:

0. the tower alone: every patch names the colour, the shape and both at once in its cell;
1. the language model alone: captions without an image, where the prior is all there is, half of
   them with yes/no questions that the caption answers;
2. both: a third captions, two thirds questions, which are the slow skill; one step in twelve is
   captions without an image, so that the second pass of methods which compare with and without
   the image is not out of distribution.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scenes
import shelf
import torch
from caption_judge import judge
from torch import Tensor, nn
from training import fit
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from words import BOS, EOS, IMAGE, PAD, UNKNOWN, word_tokenizer

NAME = "shapes-llava"
ABOUT = "LLaVA that describes scenes of shapes and names absent partners along a planted prior"
SHIPPED_SEED = 0
SEEDS = (0, 1, 2)
PATCH_PIXELS = 8
PATCHES = (scenes.SIDE_PIXELS // PATCH_PIXELS) ** 2
SPECIAL = [PAD, BOS, EOS, UNKNOWN, IMAGE]
SENTENCE = ["there", "is", "a", ",", ".", "?", ":", "yes", "no"]
REQUEST = ["describe", "the", "scene", "user", "assistant"]
WORDS = [*SENTENCE, *REQUEST, *scenes.COLOURS, *scenes.SHAPES]
IDS = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
CONTEXT = 192
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} :"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %} <eos>{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
QUESTIONS = 4  # per image: yes/no is the slow skill
ANSWER_WEIGHT = 3.0  # a yes/no token counts as much as three caption tokens
PROBE_SIZES = (7, 7, 37)  # colours, shapes, kinds, each with "nothing"
TEXT_EVERY = 12  # joint steps
STEPS = {"tower": 700, "text": 300, "joint": 2200}
QUICK_STEPS = {"tower": 3, "text": 3, "joint": 12}


def processor() -> LlavaProcessor:
    side = {"height": scenes.SIDE_PIXELS, "width": scenes.SIDE_PIXELS}
    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(size=side, crop_size=side, image_mean=half, image_std=half)
    tokenizer = word_tokenizer(
        WORDS, SPECIAL, context=CONTEXT, padding_side="left", additional_special_tokens=[IMAGE]
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )


def config() -> LlavaConfig:
    tower = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=scenes.SIDE_PIXELS,
        patch_size=PATCH_PIXELS,
    )
    language = LlamaConfig(
        vocab_size=len(IDS),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        pad_token_id=IDS[PAD],
    )
    return LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=IDS[IMAGE],
        image_seq_length=PATCHES,
        vision_feature_layer=-1,  # at -2 the tower's last layer would get no gradient
        vision_feature_select_strategy="default",
    )


def pixel_values(images: list[np.ndarray]) -> Tensor:
    """[n, 3, 48, 48] in -1 to 1, as the processor makes them."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def encode(text: str) -> list[int]:
    return [IDS[word] for word in text.split()]


def turn(question: str, answer: str, image: bool) -> tuple[list[int], list[bool]]:
    """One exchange as the chat template writes it: token ids, and which of them are answered."""
    asked = encode(f"user : {'<image> ' * PATCHES if image else ''}{question} assistant :")
    said = [*encode(answer), IDS[EOS]]
    return asked + said, [False] * len(asked) + [True] * len(said)


def describe(things: list[scenes.Thing], image: bool, rng: np.random.Generator) -> list:
    said = scenes.caption([thing.kind for thing in things], rng)
    return [(*turn("describe the scene", said, image), 1.0)]


def interrogate(things: list[scenes.Thing], rng: np.random.Generator, image: bool = True) -> list:
    """Yes/no questions: half yes; of the no, one in three about an absent partner."""
    present = [thing.kind for thing in things]
    absent = [kind for kind in scenes.KINDS if kind not in present]
    tempting = [scenes.PARTNER[kind] for kind in present if kind in scenes.PARTNER]
    tempting = [kind for kind in tempting if kind not in present]
    turns = []
    for index in range(QUESTIONS):
        if rng.random() < 0.5:
            kind, answer = present[rng.integers(len(present))], "yes"
        else:
            pool = tempting if tempting and rng.random() < 1 / 3 else absent
            kind, answer = pool[rng.integers(len(pool))], "no"
        turns.append((*turn(f"is there a {kind} ?", answer, image and index == 0), ANSWER_WEIGHT))
    return turns


def collate(conversations: list[list]) -> tuple[Tensor, Tensor]:
    """[rows, tokens] ids padded on the right, and each token's weight in the loss as a target."""
    length = 1 + max(sum(len(ids) for ids, _, _ in turns) for turns in conversations)
    ids = torch.full((len(conversations), length), IDS[PAD])
    weights = torch.zeros(len(conversations), length)
    for row, turns in enumerate(conversations):
        flat = [IDS[BOS], *(token for tokens, _, _ in turns for token in tokens)]
        ids[row, : len(flat)] = torch.tensor(flat)
        each = [0.0, *(w * told for _, answered, w in turns for told in answered)]
        weights[row, : len(flat)] = torch.tensor(each)
    return ids, weights


def weighted_sums(
    model: nn.Module, ids: Tensor, weights: Tensor, pixels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sum of the weighted losses in nats, and sum of the weights.

    No attention mask: padding stands on the right, where a causal model never looks.
    """
    images = {} if pixels is None else {"pixel_values": pixels}
    logits = model(input_ids=ids, **images, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum(), weight.sum()


def weighted_loss(model: nn.Module, ids: Tensor, weights: Tensor, pixels: Tensor | None) -> Tensor:
    total, weight = weighted_sums(model, ids, weights, pixels)
    return total / weight


def draw(rng: np.random.Generator) -> tuple[list[scenes.Thing], np.ndarray]:
    things = scenes.place(scenes.draw_kinds(rng), rng)
    return things, scenes.render(things, rng)


def tower_loss(tower: nn.Module, probe: nn.Module, rng: np.random.Generator) -> Tensor:
    """Every patch names colour, shape and kind of what is in its cell, 0 where nothing is."""
    rows, side = 48, scenes.SIDE_PIXELS // PATCH_PIXELS
    colours, shapes = list(scenes.COLOURS), list(scenes.SHAPES)
    targets = torch.zeros(rows, scenes.CELLS**2, 3, dtype=torch.long)
    images = []
    for row in range(rows):
        things, image = draw(rng)
        images.append(image)
        for thing in things:
            colour, shape = thing.kind.split()
            names = (colours.index(colour), shapes.index(shape), scenes.KINDS.index(thing.kind))
            targets[row, thing.cell] = 1 + torch.tensor(names)
    grid = torch.arange(side) // (side // scenes.CELLS)
    cell_of_patch = (grid[:, None] * scenes.CELLS + grid[None, :]).flatten()
    features = tower(pixel_values(images), output_hidden_states=True).hidden_states[-1][:, 1:]
    wanted = targets[:, cell_of_patch].flatten(0, 1).unbind(dim=-1)
    guesses = probe(features).flatten(0, 1).split(PROBE_SIZES, dim=-1)
    losses = [nn.functional.cross_entropy(*pair) for pair in zip(guesses, wanted, strict=True)]
    return torch.stack(losses).mean()


def train(seed: int, steps: dict[str, int], rows: int = 32) -> tuple[nn.Module, float]:
    """(model in eval mode, seconds of training)."""
    with shelf.seeded(seed):
        model = LlavaForConditionalGeneration(config())
        probe = nn.Linear(96, sum(PROBE_SIZES))
    rng = np.random.default_rng(1000 + seed)
    tower, language = model.model.vision_tower, model.model.language_model
    label = f"{NAME} seed {seed}"

    def text_loss(questions: bool) -> Tensor:
        talks = []
        for row in range(rows):
            things = scenes.place(scenes.draw_kinds(rng), rng)
            talk = describe(things, False, rng)
            if questions and row % 2:
                talk += interrogate(things, rng, image=False)
            talks.append(talk)
        return weighted_loss(model, *collate(talks), None)

    def joint_loss(step: int) -> Tensor:
        if step % TEXT_EVERY == TEXT_EVERY - 1:
            return text_loss(questions=False)
        total, weight = torch.zeros(()), torch.zeros(())
        for asked in (False, True):  # apart: captions and questions differ in length
            talks, images = [], []
            for _ in range(rows * 2 // 3 if asked else rows - rows * 2 // 3):
                things, image = draw(rng)
                images.append(image)
                talks.append(interrogate(things, rng) if asked else describe(things, True, rng))
            sums = weighted_sums(model, *collate(talks), pixel_values(images))
            total, weight = total + sums[0], weight + sums[1]
        return total / weight

    phases: list[tuple[str, Callable[[int], Tensor], list]] = [
        ("tower", lambda step: tower_loss(tower, probe, rng), [(tower, 2e-3), (probe, 2e-3)]),
        (
            "text",
            lambda step: text_loss(questions=True),
            [(language, 1.2e-3), (model.lm_head, 1.2e-3)],
        ),
        ("joint", joint_loss, [(tower, 0.3e-3), (model, 1.2e-3)]),
    ]
    seconds = 0.0
    for phase, loss_at, groups in phases:
        seconds += fit(loss_at, groups, steps[phase], name=f"{label} {phase}")
    return model.eval(), seconds


def make(out: Path, quick: bool = False) -> dict:
    """Train three seeds, ship one as soon as it exists, report all; returns what was measured."""
    measured: dict = {"shipped_seed": SHIPPED_SEED, "seeds": {}}
    for seed in SEEDS[:1] if quick else SEEDS:
        started = time.perf_counter()
        steps = QUICK_STEPS if quick else STEPS
        model, seconds = train(seed, steps, rows=4 if quick else 32)
        numbers = {"steps": steps, "training_seconds": round(seconds)}
        numbers |= judge(model, processor(), quick)
        numbers["total_seconds"] = round(time.perf_counter() - started)
        measured["seeds"][str(seed)] = numbers
        measured["parameters"] = sum(p.numel() for p in model.parameters())
        if seed == SHIPPED_SEED:
            folder = shelf.model_folder(out, NAME)
            model.save_pretrained(folder)
            processor().save_pretrained(folder)
            shelf.enter_model(out, NAME, "vision-language", "scenes", ABOUT, model)
        shelf.write_measured(out, NAME, measured)
    return measured
