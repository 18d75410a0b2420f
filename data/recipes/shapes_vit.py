"""shapes-vit: a DINOv2-with-registers classifier of rendered shapes and scikit-learn's digits.

Sixteen classes: six shapes, anywhere and of any size and colour, and ten digits, which are real
images. 32 x 32 pixels in patches of 4: an 8 x 8 grid, a CLS token and two registers.

While it trains, every patch also has to name what it is part of, through a probe that is thrown
away: with the class alone, shapes were told apart in .67 of the images after the same steps.
Asking each patch for its neighbours' brightness too, to grow heads that attend at a fixed shift,
was tried and grew none (.04 of the attention at most).
"""

import time
from pathlib import Path

import numpy as np
import shelf
import torch
from single_shapes import (
    LABELS,
    SIDE_PIXELS,
    digit_pixels,
    digit_split,
    draw_digit,
    draw_single,
)
from torch import Tensor, nn
from training import fit
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ViTImageProcessorPil,
)

NAME = "shapes-vit"
ABOUT = "ViT with CLS and two registers, 4 layers x 6 heads: 6 rendered shapes and 10 real digits"
REGISTERS = 2
PATCH_PIXELS = 4
GROUND = len(LABELS)  # the patch label of what is no object
SEED = 0
HELD_OUT_SHAPES = 1000


def processor() -> ViTImageProcessorPil:
    size = {"height": SIDE_PIXELS, "width": SIDE_PIXELS}
    half = [0.5, 0.5, 0.5]
    return ViTImageProcessorPil(size=size, image_mean=half, image_std=half)


def pixel_values(images: np.ndarray) -> Tensor:
    """[n, height, width, 3] uint8 → [n, 3, height, width] in -1 to 1, as the processor does."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_batch(
    rows: int, digits: tuple, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Half shapes, half digits: images, labels, and [rows, patches] labels of the patches.

    A patch under the shape's box, or with ink of a digit, has the image's label, others `GROUND`.
    """
    side = SIDE_PIXELS // PATCH_PIXELS
    images, labels = [], []
    patches = torch.full((rows, side, side), GROUND)
    for row in range(rows):
        if row % 2 == 0:
            image, label, box = draw_single(rng)
            left, top, right, bottom = (edge / PATCH_PIXELS for edge in box)
            down, across = slice(int(top), int(bottom)), slice(int(left), int(right))
            patches[row, down, across] = label
        else:
            index = int(rng.integers(len(digits[0])))
            image = draw_digit(digits[0][index], rng)
            label = LABELS.index(str(digits[1][index]))
            blocks = image[:, :, 0].reshape(side, PATCH_PIXELS, side, PATCH_PIXELS)
            patches[row][torch.from_numpy(blocks.mean(axis=(1, 3)) > 60)] = label
        images.append(image)
        labels.append(label)
    return pixel_values(np.stack(images)), torch.tensor(labels), patches.flatten(1)


def held_out() -> dict[str, tuple[Tensor, Tensor]]:
    """Shapes drawn apart from training, and the digits that were never trained on."""
    rng = np.random.default_rng(20_000)
    shapes = [draw_single(rng) for _ in range(HELD_OUT_SHAPES)]
    images, digits = digit_split()[1]
    return {
        "shapes": (
            pixel_values(np.stack([image for image, _, _ in shapes])),
            torch.tensor([label for _, label, _ in shapes]),
        ),
        "digits": (
            pixel_values(np.stack([digit_pixels(image) for image in images])),
            torch.tensor([LABELS.index(str(digit)) for digit in digits]),
        ),
    }


@torch.no_grad()
def judge(model: Dinov2WithRegistersForImageClassification) -> dict:
    """Accuracy on both held-out parts, and where the heads look (mean over held-out shapes).

    `cls_to_registers`: attention of the CLS query to both registers. `best_shift`: the mean
    attention at a head's favourite (row, column) offset between patches.
    """
    parts = held_out()
    measured = {
        f"accuracy_{part}": round(
            (model(images).logits.argmax(dim=-1) == labels).float().mean().item(), 3
        )
        for part, (images, labels) in parts.items()
    }
    patterns = model(parts["shapes"][0][:128], output_attentions=True).attentions
    special = 1 + REGISTERS
    side = round((patterns[0].shape[-1] - special) ** 0.5)
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    down, right = row[None] - row[:, None], column[None] - column[:, None]
    measured |= {"cls_to_registers": [], "best_shift": []}
    for pattern in patterns:
        registers = pattern[:, :, 0, 1:special].sum(dim=-1).mean(dim=0)
        measured["cls_to_registers"].append([round(value, 3) for value in registers.tolist()])
        among_patches = pattern[:, :, special:, special:].mean(dim=0)
        favourites = []
        for head in among_patches:
            shares = {
                (dy, dx): head[(down == dy) & (right == dx)].mean().item()
                for dy in range(-3, 4)
                for dx in range(-3, 4)
            }
            (dy, dx), share = max(shares.items(), key=lambda item: item[1])
            favourites.append([dy, dx, round(share, 3)])
        measured["best_shift"].append(favourites)
    return measured


def make(out: Path, quick: bool = False) -> dict:
    """Train, judge and save; returns what was measured."""
    started = time.perf_counter()
    steps = 5 if quick else 2500
    config = Dinov2WithRegistersConfig(
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        mlp_ratio=3,
        image_size=SIDE_PIXELS,
        patch_size=PATCH_PIXELS,
        num_register_tokens=REGISTERS,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    with shelf.seeded(SEED):
        model = Dinov2WithRegistersForImageClassification(config)
        probe = nn.Linear(config.hidden_size, 1 + GROUND)
    rng, digits = np.random.default_rng(SEED), digit_split()[0]

    def loss_at(step: int) -> Tensor:
        images, labels, patches = training_batch(8 if quick else 48, digits, rng)
        out = model(images, labels=labels, output_hidden_states=True)
        logits = probe(out.hidden_states[-1][:, 1 + REGISTERS :])
        return out.loss + nn.functional.cross_entropy(logits.flatten(0, 1), patches.flatten())

    groups = [(model, 2e-3), (probe, 2e-3)]
    seconds = fit(loss_at, groups, steps, name=NAME, weight_decay=0.05)
    model.eval()
    model.set_attn_implementation("eager")  # the kernel that returns its patterns
    measured = {"seed": SEED, "steps": steps, "training_seconds": round(seconds), **judge(model)}
    measured["parameters"] = sum(p.numel() for p in model.parameters())
    folder = shelf.model_folder(out, NAME)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    measured["total_seconds"] = round(time.perf_counter() - started)
    shelf.write_measured(out, NAME, measured)
    shelf.enter_model(out, NAME, "vision", "digits", ABOUT, model)
    return measured
