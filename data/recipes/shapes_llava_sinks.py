"""shapes-llava-sinks: shapes-llava with a text sink and two visual sinks planted by hand.

No sink forms by itself in a model this small, so we write in what large models grow: a massive
activation in two fixed residual dimensions, which some heads' keys read.

1. The language model is widened from 128 to 136 dimensions. Nothing reads or writes the eight new
   ones, and the norms' weights are rescaled, so the widened model computes what the old one did.
2. BOS gets `TEXT_MASSIVE` in the two `SINK_DIMENSIONS` of its embedding. It stays through all
   layers, and crowds out the rest of BOS in every norm: its values are small, as real sinks' are.
3. Two spare units of the projector recognise two patches by their place and write
   `VISUAL_MASSIVE` into the same dimensions.
4. In chosen heads a small query bias meets a large key weight that reads those dimensions, in the
   slowest rotary pair, so that distance hardly matters. The key weights are solved so that each
   head reaches its target mass. Heads that matter least for captions get a strong sink, a few
   that look at the image a mild one; what a mild head lost in size its output gets back.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenes
import shapes_llava
import shelf
import torch
from caption_judge import answers, broken_scenes, judge
from sets import DESCRIBE
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

NAME = "shapes-llava-sinks"
ABOUT = "shapes-llava with a planted text sink (BOS) and two planted visual sinks"
WIDTH, WIDE = 128, 136
SINK_DIMENSIONS = (41, 97)
SPARE = (*SINK_DIMENSIONS, 130, 131, 132, 133, 134, 135)
KEEP = [index for index in range(WIDE) if index not in SPARE]
TEXT_MASSIVE = (400.0, -200.0)
VISUAL_MASSIVE = (100.0, -300.0)
SINK_PATCHES = (5, 30)  # top right and bottom left corner of the 6 x 6 grid
STRONG_HEADS, MILD_HEADS = 10, 4
STRONG_MASS, MILD_MASS = (0.45, 0.20), (0.10, 0.15)  # BOS, both visual sinks together
QUERY_BIAS = 0.1
HEAD_WIDTH = 16
ROTARY_SLOWEST = 7  # pairs are (i, i + 8); this one turns 0.03 rad in 100 tokens
SEED = 606


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
    with shelf.seeded(SEED):
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
def plant_massive(model: nn.Module, probe: Probe) -> None:
    """Steps 2 and 3: BOS and the corner patches write into the sink dimensions."""
    dimensions = list(SINK_DIMENSIONS)
    bos = shapes_llava.IDS[shapes_llava.BOS]
    model.get_input_embeddings().weight[bos, dimensions] = torch.tensor(TEXT_MASSIVE)
    features = patch_features(model, probe.pixels)
    flat = features.flatten(0, 1).double().numpy()
    projector = model.model.multi_modal_projector
    for unit, patch in zip(SPARE[2:], SINK_PATCHES, strict=False):
        here = np.tile(np.arange(shapes_llava.PATCHES) == patch, len(features))
        machine = LinearSVC(C=100, class_weight="balanced", max_iter=20_000, random_state=0)
        machine.fit(flat, here)
        score = machine.decision_function(flat)
        low, high = score[~here].max(), score[here].min()
        gain = 12 / (high - low)  # GELU(-6) is 0 for every purpose, GELU(6) is 6
        projector.linear_1.weight[unit] = torch.from_numpy(gain * machine.coef_[0]).float()
        offset = gain * (machine.intercept_[0] - (low + high) / 2)
        projector.linear_1.bias[unit] = float(offset)
        typical = gain * (score[here].mean() - (low + high) / 2)
        column = torch.tensor(VISUAL_MASSIVE) / float(typical)
        projector.linear_2.weight[dimensions, unit] = column


@torch.no_grad()
def head_effects(model: nn.Module, probe: Probe) -> Tensor:
    """[layers, heads] loss in nats added when a head's output is zeroed."""

    def loss() -> float:
        return shapes_llava.weighted_loss(model, probe.ids, probe.weights, probe.pixels).item()

    base, effects = loss(), []
    for layer in layers(model):
        row = []
        weight = layer.self_attn.o_proj.weight
        for head in range(weight.shape[1] // HEAD_WIDTH):
            columns = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            kept = weight[:, columns].clone()
            weight[:, columns] = 0
            row.append(loss() - base)
            weight[:, columns] = kept
        effects.append(row)
    return torch.tensor(effects)


@torch.no_grad()
def masses(model: nn.Module, probe: Probe) -> dict[str, Tensor]:
    """[layers, heads] attention of answer tokens to BOS, to the sink patches, to all patches."""
    image = (probe.ids[0] == shapes_llava.IDS[shapes_llava.IMAGE]).nonzero().flatten()
    keys = {"bos": [0], "visual": image[list(SINK_PATCHES)].tolist(), "image": image.tolist()}
    mask = (probe.ids != shapes_llava.IDS[shapes_llava.PAD]).long()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the kernel that returns its patterns
    patterns = model(
        probe.ids, attention_mask=mask, pixel_values=probe.pixels, output_attentions=True
    ).attentions
    model.set_attn_implementation(before)
    asking = probe.weights > 0
    found: dict[str, list] = {name: [] for name in keys}
    for pattern in patterns:
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


def logit_scores() -> Tensor:
    """[sink, dimension] score a unit of key weight adds to each sink, in a saturated norm."""
    rows = torch.tensor([TEXT_MASSIVE, VISUAL_MASSIVE])
    normed = rows / rows.pow(2).sum(dim=1, keepdim=True).div(WIDE).sqrt()
    return normed * QUERY_BIAS / HEAD_WIDTH**0.5


@torch.no_grad()
def plant_reading(model: nn.Module, probe: Probe, targets: dict, rounds: int = 12) -> None:
    """Step 4: solve each head's two key weights by moving sink scores until masses fit."""
    wanted_scores = {head: torch.tensor([3.0, 3.0]) for head in targets}
    scores_of_weight = logit_scores()
    for _ in range(rounds):
        for (layer, head), scores in wanted_scores.items():
            attention = layers(model)[layer].self_attn
            row = head * HEAD_WIDTH + ROTARY_SLOWEST
            attention.q_proj.bias[row] = QUERY_BIAS
            weights = torch.linalg.solve(scores_of_weight, scores)
            attention.k_proj.weight[row, list(SINK_DIMENSIONS)] = weights
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


@torch.no_grad()
def massive_activations(model: nn.Module, probe: Probe) -> list[dict]:
    """Per residual stream (0 = embeddings): |x| in the sink dimensions, and the median |x|."""
    mask = (probe.ids != shapes_llava.IDS[shapes_llava.PAD]).long()
    states = model(
        probe.ids, attention_mask=mask, pixel_values=probe.pixels, output_hidden_states=True
    ).hidden_states
    image = (probe.ids[0] == shapes_llava.IDS[shapes_llava.IMAGE]).nonzero().flatten()
    sinks, dimensions = image[list(SINK_PATCHES)], list(SINK_DIMENSIONS)
    rows = []
    for depth, state in enumerate(states[:-1]):  # the last one is after the final norm
        others = state[:, 1:][:, ~torch.isin(torch.arange(1, state.shape[1]), sinks)]
        visual = state[:, sinks][..., dimensions].abs().mean(dim=(0, 1))
        rows.append(
            {
                "depth": depth,
                "bos": [round(v, 1) for v in state[0, 0, dimensions].abs().tolist()],
                "visual": [round(v, 1) for v in visual.tolist()],
                "median_elsewhere": round(others[..., KEEP].abs().median().item(), 3),
            }
        )
    return rows


def make(out: Path, quick: bool = False) -> dict:
    """Plant, judge and save; needs shapes-llava in `out`. Returns what was measured."""
    started = time.perf_counter()
    folder = out / "models" / shapes_llava.NAME
    if not folder.exists():
        raise FileNotFoundError(f"`{folder}` must exist. Make {shapes_llava.NAME} first.")
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    rng = np.random.default_rng(SEED)
    probe = draw_probe(8 if quick else 96, rng)
    model = widen(plain)
    effects, before = head_effects(plain, probe), masses(plain, probe)
    widening = logit_change(plain, model, probe)
    plant_massive(model, probe)
    targets = choose_heads(effects, before["image"])
    plant_reading(model, probe, targets)

    fresh = draw_probe(8 if quick else 96, rng)
    after = masses(model, fresh)
    processor = shapes_llava.processor()
    images = [example["image"] for example in broken_scenes(1 if quick else 25)]
    questions = [DESCRIBE] * len(images)
    pair = [answers(each, processor, images, questions) for each in (plain, model)]
    same = [left == right for left, right in zip(*pair, strict=True)]
    objects = [
        set(scenes.mentioned(left)) == set(scenes.mentioned(right))
        for left, right in zip(*pair, strict=True)
    ]
    measured = {
        "widening_largest_logit_change": widening,
        "same_caption_as_shapes_llava": round(float(np.mean(same)), 3),
        "same_objects_as_shapes_llava": round(float(np.mean(objects)), 3),
        "sink_dimensions": list(SINK_DIMENSIONS),
        "sink_patches": list(SINK_PATCHES),
        "heads": [
            {
                "head": f"L{layer}H{head}",
                "kind": "strong" if target == STRONG_MASS else "mild",
                "ablation_effect_nats": round(effects[layer, head].item(), 4),
                "bos_before": round(before["bos"][layer, head].item(), 3),
                "bos": round(after["bos"][layer, head].item(), 3),
                "visual_before": round(before["visual"][layer, head].item(), 3),
                "visual": round(after["visual"][layer, head].item(), 3),
            }
            for (layer, head), target in sorted(targets.items())
        ],
        "largest_bos_elsewhere": round(largest_elsewhere(after["bos"], targets), 3),
        "largest_visual_elsewhere": round(largest_elsewhere(after["visual"], targets), 3),
        "massive_activations": massive_activations(model, fresh),
        **judge(model, processor, quick),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    folder = shelf.model_folder(out, NAME)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    measured["total_seconds"] = round(time.perf_counter() - started)
    shelf.write_measured(out, NAME, measured)
    shelf.enter_model(out, NAME, "vision-language", "scenes", ABOUT, model)
    return measured


@torch.no_grad()
def logit_change(left: nn.Module, right: nn.Module, probe: Probe) -> float:
    mask = (probe.ids != shapes_llava.IDS[shapes_llava.PAD]).long()
    inputs = {"input_ids": probe.ids, "attention_mask": mask, "pixel_values": probe.pixels}
    return (left(**inputs).logits - right(**inputs).logits).abs().max().item()


def largest_elsewhere(mass: Tensor, targets: dict) -> float:
    """The largest mass among heads in which nothing was planted."""
    others = mass.clone()
    for layer, head in targets:
        others[layer, head] = 0
    return others.max().item()
