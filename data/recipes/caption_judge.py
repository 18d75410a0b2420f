"""What a scene describer does, measured on `scenes-broken`: CHAIR, POPE, and the dose curve.

Scenes are redrawn here from the seed that `sets.py` uses, so that judging needs no files.
"""

import numpy as np
import scenes
import torch
from sets import BROKEN_SEED, DESCRIBE, PER_CUE, PER_CUE_PRESENT, draw_broken
from torch import Tensor, nn
from transformers import LlavaProcessor

ANSWER_TOKENS = 40
ROWS = 50
POPE_SEED = 505


def broken_scenes(per_cue: int = PER_CUE) -> list[dict]:
    """The scenes of `scenes-broken`: kinds, image, cue, partner, partner_present."""
    rng = np.random.default_rng(BROKEN_SEED)
    found = []
    for repeat in range(per_cue):
        for cue, partner in scenes.PARTNER.items():
            present = repeat < PER_CUE_PRESENT and per_cue > 1
            things = draw_broken(cue, present, rng)
            image = scenes.render(things, rng)
            kinds = [thing.kind for thing in things]
            found.append({"kinds": kinds, "image": image, "cue": cue, "partner": partner})
            found[-1]["present"] = present
    return found


def prompt(processor: LlavaProcessor, question: str, image: bool = True) -> str:
    parts = [{"type": "image"}] if image else []
    content = [*parts, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


@torch.no_grad()
def answers(
    model: nn.Module,
    processor: LlavaProcessor,
    images: list[np.ndarray],
    questions: list[str],
    tokens: int = ANSWER_TOKENS,
    **generate,
) -> list[str]:
    """Greedy answers, special tokens left out."""
    said = []
    for start in range(0, len(images), ROWS):
        rows = slice(start, start + ROWS)
        texts = [prompt(processor, question) for question in questions[rows]]
        inputs = processor(text=texts, images=images[rows], return_tensors="pt", padding=True)
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **generate)
        fresh = out[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(fresh, skip_special_tokens=True)
    return said


def chair(examples: list[dict], captions: list[str]) -> dict:
    """CHAIR (Rohrbach et al., 2018) and its parts; every value a share of what it names."""
    rows = []
    for example, text in zip(examples, captions, strict=True):
        said, there = set(scenes.mentioned(text)), set(example["kinds"])
        rows.append((len(said), len(said - there), len(said & there), len(there)))
    table = np.array(rows)
    absent = [
        (example, text)
        for example, text in zip(examples, captions, strict=True)
        if not example["present"]
    ]
    named = [example["partner"] in scenes.mentioned(text) for example, text in absent]
    wrong = table[:, 1].sum() - sum(named)
    return {
        "chair_s": (table[:, 1] > 0).mean(),
        "chair_i": table[:, 1].sum() / max(1, table[:, 0].sum()),
        "recall": table[:, 2].sum() / table[:, 3].sum(),
        "absent_partner_named": float(np.mean(named)),
        "other_errors_per_mention": wrong / max(1, table[:, 0].sum()),
        "words": float(np.mean([len(text.split()) for text in captions])),
    }


def pope(model: nn.Module, processor: LlavaProcessor, examples: list[dict]) -> dict:
    """Accuracy on "is there a X ?" (Li et al., 2023): X present, absent, the absent partner."""
    rng = np.random.default_rng(POPE_SEED)
    groups: dict[str, list[tuple[np.ndarray, str, str]]] = {
        "present": [],
        "random": [],
        "adversarial": [],
    }
    for example in examples:
        kinds = example["kinds"]
        absent = [k for k in scenes.KINDS if k not in kinds and k != example["partner"]]
        groups["present"].append((example["image"], kinds[rng.integers(len(kinds))], "yes"))
        groups["random"].append((example["image"], absent[rng.integers(len(absent))], "no"))
        if not example["present"]:
            groups["adversarial"].append((example["image"], example["partner"], "no"))
    measured = {}
    for name, asked in groups.items():
        questions = [f"is there a {kind} ?" for _, kind, _ in asked]
        said = answers(model, processor, [image for image, _, _ in asked], questions, tokens=1)
        right = [text.strip() == truth for text, (_, _, truth) in zip(said, asked, strict=True)]
        measured[f"pope_{name}"] = float(np.mean(right))
    return measured


@torch.no_grad()
def partner_probability(
    model: nn.Module, processor: LlavaProcessor, cue: str, images: list[np.ndarray] | None
) -> Tensor:
    """[images] p(", a PARTNER" | "there is a CUE"), teacher-forced; without images, one value."""
    ids = processor.tokenizer.convert_tokens_to_ids
    said = f"there is a {cue}"
    continuation = [",", "a", *scenes.PARTNER[cue].split()]
    text = f"{prompt(processor, DESCRIBE, images is not None)} {said} {' '.join(continuation)}"
    if images is None:
        inputs = processor.tokenizer([text], return_tensors="pt")
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    else:
        inputs = processor(text=[text] * len(images), images=images, return_tensors="pt")
    logits = model(**inputs).logits.log_softmax(dim=-1)
    count = len(continuation)
    places = range(logits.shape[1] - count - 1, logits.shape[1] - 1)
    total = sum(
        logits[:, place, ids(word)] for place, word in zip(places, continuation, strict=True)
    )
    return total.exp()


def dose_curve(
    model: nn.Module, processor: LlavaProcessor, examples: list[dict], captions: list[str]
) -> list[dict]:
    """Per cue, over scenes without its partner: how often it is named, and how probable it is."""
    curve = []
    for cue, partner in scenes.PARTNER.items():
        chosen = [
            (example, text)
            for example, text in zip(examples, captions, strict=True)
            if example["cue"] == cue and not example["present"]
        ]
        named = [partner in scenes.mentioned(text) for _, text in chosen]
        seen = partner_probability(model, processor, cue, [e["image"] for e, _ in chosen])
        blind = partner_probability(model, processor, cue, None)
        design = scenes.DOSE[cue] + (1 - scenes.DOSE[cue]) * scenes.FALSE_MENTION
        curve.append(
            {
                "cue": cue,
                "partner": partner,
                "dose": scenes.DOSE[cue],
                "said_in_training": round(design, 3),
                "named": round(float(np.mean(named)), 3),
                "probability_with_image": round(seen.mean().item(), 3),
                "probability_text_only": round(blind.item(), 3),
            }
        )
    return curve


def correlation(left: list[float], right: list[float]) -> float:
    """Pearson's r; 0 where one side does not vary."""
    if np.std(left) == 0 or np.std(right) == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def judge(model: nn.Module, processor: LlavaProcessor, quick: bool = False) -> dict:
    """Everything data/README.md reports about one describer."""
    examples = broken_scenes(1 if quick else PER_CUE)
    images = [example["image"] for example in examples]
    captions = answers(model, processor, images, [DESCRIBE] * len(images))
    few = slice(0, 12 if quick else 100)
    again = answers(model, processor, images[few], [DESCRIBE] * len(images[few]), use_cache=False)
    curve = dose_curve(model, processor, examples, captions)
    measured = {**chair(examples, captions), **pope(model, processor, examples)}
    measured["partner_probability"] = np.mean([row["probability_with_image"] for row in curve])
    doses = [row["dose"] for row in curve]
    for key in ("named", "probability_with_image", "probability_text_only"):
        measured[f"dose_correlation_{key}"] = correlation(doses, [row[key] for row in curve])
    measured["same_caption_without_cache"] = np.mean(
        [left == right for left, right in zip(captions[few], again, strict=True)]
    )
    rounded = {key: round(float(value), 3) for key, value in measured.items()}
    return {**rounded, "scenes": len(examples), "dose_curve": curve}
