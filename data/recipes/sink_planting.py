"""How a sink is written into a LLaVA's weights by hand; `shapes_llava_sinks` says what for."""

from dataclasses import dataclass

import numpy as np
import shapes_llava
import shelf
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

WIDTH, WIDE = 128, 136
SINK_DIMENSIONS = (41, 97)
SPARE = (*SINK_DIMENSIONS, 130, 131, 132, 133, 134, 135)
KEEP = [index for index in range(WIDE) if index not in SPARE]
TEXT_MASSIVE = (400.0, -200.0)
VISUAL_MASSIVE = (100.0, -300.0)
SINK_PATCHES = (5, 30)  # top right and bottom left corner of the 6 x 6 grid
FLAG_SIZE = 40.0  # features have a norm of 25; below 16 some images still hid a place
STRONG_HEADS, MILD_HEADS = 10, 4
STRONG_MASS, MILD_MASS = (0.45, 0.20), (0.10, 0.15)  # BOS, both visual sinks together
QUERY_BIAS = 1.0
HEAD_WIDTH = 16
SLOW_PAIRS = (5, 6, 7)  # (i, i + 8); they turn 0.3, 0.1 and 0.03 rad in 100 tokens


@dataclass(frozen=True)
class Probe:
    """Captioned scenes on which heads are ranked and masses solved; drawn apart from the sets."""

    ids: Tensor
    weights: Tensor
    pixels: Tensor


def draw_probe(rows: int, rng: np.random.Generator) -> Probe:
    talks, images = [], []
    for _ in range(rows):
        things, image = shapes_llava.draw(rng)
        images.append(image)
        talks.append(shapes_llava.describe(things, True, rng))
    return Probe(*shapes_llava.collate(talks), shapes_llava.pixel_values(images))


def layers(model: nn.Module) -> nn.ModuleList:
    return model.model.language_model.layers


@torch.no_grad()
def widen(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The same function in `WIDE` dimensions, with attention biases that are zero."""
    config = shapes_llava.config()
    text = config.text_config
    text.hidden_size, text.head_dim, text.attention_bias = WIDE, HEAD_WIDTH, True
    with shelf.seeded(0):  # every weight is overwritten
        wide = LlavaForConditionalGeneration(config)
    keep, shrink = torch.tensor(KEEP), (WIDTH / WIDE) ** 0.5
    source = model.state_dict()
    for name, target in wide.state_dict().items():
        if name not in source:  # attention biases
            target.zero_()
            continue
        value = source[name]
        if "vision_tower" in name:
            target.copy_(value)
            continue
        target.zero_()
        where = [
            keep if size == WIDE and old == WIDTH else torch.arange(size)
            for size, old in zip(target.shape, value.shape, strict=True)
        ]
        target[torch.meshgrid(*where, indexing="ij")] = value
        if "norm" in name:
            target[keep] *= shrink
            target[list(SPARE)] = 1.0
    return wide.eval()


def patch_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """[images, patches, 96] what the projector receives."""
    tower = model.model.vision_tower
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


@torch.no_grad()
def flag_places(model: nn.Module, pixels: Tensor) -> None:
    """Mark the sink patches in the tower: their features alone have no fixed place in them.

    Each gets `FLAG_SIZE` along a direction in which features hardly vary, by way of its position
    embedding, so that it is there at the end whatever the image shows.
    """
    tower = model.model.vision_tower
    features = patch_features(model, pixels).flatten(0, 1)
    directions = torch.linalg.eigh(features.T.cov()).eigenvectors  # least variance first
    embedded = tower.embeddings(pixels)
    for index, patch in enumerate(SINK_PATCHES):
        spread = embedded[:, 1 + patch].std(dim=-1).mean()
        wanted = FLAG_SIZE * directions[:, index] * spread / tower.pre_layrnorm.weight
        tower.embeddings.position_embedding.weight[1 + patch] += wanted


@torch.no_grad()
def plant_massive(model: nn.Module, pixels: Tensor) -> float:
    """Steps 2 and 3: BOS and the corner patches write into the sink dimensions.

    Returns the smallest distance, over both detectors, between the lowest score of a sink patch
    and the highest of any other patch, in units of a detector's margin (2 would be separable).
    """
    dimensions = list(SINK_DIMENSIONS)
    bos = shapes_llava.IDS[shapes_llava.BOS]
    model.get_input_embeddings().weight[bos, dimensions] = torch.tensor(TEXT_MASSIVE)
    flag_places(model, pixels)
    features = patch_features(model, pixels)
    flat = features.flatten(0, 1).double().numpy()
    projector = model.model.multi_modal_projector
    gaps = []
    for unit, patch in zip(SPARE[2:], SINK_PATCHES, strict=False):
        here = np.tile(np.arange(shapes_llava.PATCHES) == patch, len(features))
        machine = LinearSVC(C=1, class_weight="balanced", max_iter=20_000, random_state=0)
        machine.fit(flat, here)
        score = machine.decision_function(flat)
        low, high = score[~here].max(), score[here].min()
        gaps.append(float(high - low))
        gain = 24 / (high - low)  # GELU(-12) is 0 for every purpose, GELU(12) is 12
        projector.linear_1.weight[unit] = torch.from_numpy(gain * machine.coef_[0]).float()
        offset = gain * (machine.intercept_[0] - (low + high) / 2)
        projector.linear_1.bias[unit] = float(offset)
        typical = gain * (score[here].mean() - (low + high) / 2)
        column = torch.tensor(VISUAL_MASSIVE) / float(typical)
        projector.linear_2.weight[dimensions, unit] = column
    return min(gaps)


@torch.no_grad()
def caption_loss(model: nn.Module, probe: Probe) -> float:
    return shapes_llava.weighted_loss(model, probe.ids, probe.weights, probe.pixels).item()


@torch.no_grad()
def head_effects(model: nn.Module, probe: Probe) -> Tensor:
    """[layers, heads] loss in nats added when a head's output is zeroed."""
    base, effects = caption_loss(model, probe), []
    for layer in layers(model):
        row = []
        weight = layer.self_attn.o_proj.weight
        for head in range(weight.shape[1] // HEAD_WIDTH):
            columns = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            kept = weight[:, columns].clone()
            weight[:, columns] = 0
            row.append(caption_loss(model, probe) - base)
            weight[:, columns] = kept
        effects.append(row)
    return torch.tensor(effects)


@torch.no_grad()
def masses(model: nn.Module, probe: Probe) -> dict[str, Tensor]:
    """[layers, heads] attention of answer tokens to BOS, to the sink patches, to all patches."""
    image = (probe.ids[0] == shapes_llava.IDS[shapes_llava.IMAGE]).nonzero().flatten()
    keys = {"bos": [0], "visual": image[list(SINK_PATCHES)].tolist(), "image": image.tolist()}
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the kernel that returns its patterns
    out = model(input_ids=probe.ids, pixel_values=probe.pixels, output_attentions=True)
    model.set_attn_implementation(before)
    asking = probe.weights > 0
    found: dict[str, list] = {name: [] for name in keys}
    for pattern in out.attentions:
        for name, places in keys.items():
            mass = pattern[:, :, :, places].sum(dim=-1)
            found[name].append(mass.transpose(1, 2)[asking].mean(dim=0))
    return {name: torch.stack(rows) for name, rows in found.items()}


def choose_heads(effects: Tensor, image_mass: Tensor) -> dict[tuple[int, int], tuple]:
    """(layer, head) → target masses: strong where little is lost, mild where the image is read."""
    heads = effects.shape[1]
    order = effects.flatten().argsort().tolist()
    targets = {divmod(place, heads): STRONG_MASS for place in order[:STRONG_HEADS]}
    looking = image_mass.flatten()[order[STRONG_HEADS:]].argsort(descending=True).tolist()
    for place in looking[:MILD_HEADS]:
        targets[divmod(order[STRONG_HEADS + place], heads)] = MILD_MASS
    return targets


@torch.no_grad()
def free_pair(model: nn.Module, probe: Probe, layer: int, head: int) -> int:
    """Row of the head's least missed slow rotary pair, after emptying that pair."""
    attention = layers(model)[layer].self_attn
    losses = {}
    for pair in SLOW_PAIRS:
        rows = [head * HEAD_WIDTH + pair, head * HEAD_WIDTH + pair + HEAD_WIDTH // 2]
        kept = attention.q_proj.weight[rows].clone()
        attention.q_proj.weight[rows] = 0
        losses[pair] = caption_loss(model, probe)
        attention.q_proj.weight[rows] = kept
    row = head * HEAD_WIDTH + min(losses, key=losses.get)
    for emptied in (row, row + HEAD_WIDTH // 2):
        attention.q_proj.weight[emptied] = 0
        attention.k_proj.weight[emptied] = 0
    attention.q_proj.bias[row] = QUERY_BIAS
    return row


def logit_scores() -> Tensor:
    """[sink, dimension] score a unit of key weight adds to each sink, in a saturated norm."""
    rows = torch.tensor([TEXT_MASSIVE, VISUAL_MASSIVE])
    normed = rows / rows.pow(2).sum(dim=1, keepdim=True).div(WIDE).sqrt()
    return normed * QUERY_BIAS / HEAD_WIDTH**0.5


@torch.no_grad()
def plant_reading(model: nn.Module, probe: Probe, targets: dict, rounds: int = 12) -> None:
    """Step 4: solve each head's two key weights by moving sink scores until masses fit."""
    rows = {head: free_pair(model, probe, *head) for head in targets}
    wanted_scores = {head: torch.tensor([3.0, 3.0]) for head in targets}
    scores_of_weight = logit_scores()
    for _ in range(rounds):
        for (layer, head), scores in wanted_scores.items():
            weights = torch.linalg.solve(scores_of_weight, scores)
            keys = layers(model)[layer].self_attn.k_proj.weight
            keys[rows[layer, head], list(SINK_DIMENSIONS)] = weights
        now = masses(model, probe)
        for (layer, head), target in targets.items():
            reached = torch.stack([now["bos"][layer, head], now["visual"][layer, head]])
            reached, wanted = reached.clamp(1e-4, 1 - 1e-4), torch.tensor(target)
            rest = 1 - reached.sum().clamp(max=0.999)
            step = (wanted / (1 - wanted.sum())).log() - (reached / rest).log()
            wanted_scores[layer, head] += step.clamp(-2, 2)
    for (layer, head), target in targets.items():
        if target == MILD_MASS:
            columns = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            layers(model)[layer].self_attn.o_proj.weight[:, columns] /= 1 - sum(target)
