"""A batch of two packed images for a small Qwen, with prompts as the test writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from planting import scene
from small_vlms import qwen_images

from probes.inputs import Batch, Example
from probes.subject import Subject
from probes.tokens import map_tokens

IMAGE = 4


def packed_batch(
    model: torch.nn.Module, tokenizer: Any, prompt: Callable[[list[int]], list[str]]
) -> tuple[Subject, Batch]:
    """Left-padded; ``prompt`` gets how many positions each image has in the language model."""
    images = [scene(100, 60), scene(60, 90)]
    subject = Subject(model.eval(), tokenizer, name="small")
    processor = qwen_images()
    made = dict(processor(images=images, return_tensors="pt"))
    texts = prompt((made["image_grid_thw"].prod(-1) // 4).tolist())
    rows = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(len(row) for row in rows)
    made["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    made["attention_mask"] = (made["input_ids"] != 0).long()
    made["mm_token_type_ids"] = (made["input_ids"] == IMAGE).long()
    towers = list(subject.layout_for(made, len(images)).towers.values())
    sizes = tuple(image.size for image in images)
    tokens = map_tokens(model, processor, made, towers, tokenizer=tokenizer, image_sizes=sizes)
    examples = tuple(Example(str(index)) for index in range(len(images)))
    return subject, Batch(made, tokens, examples, (-1, -1), sizes, (0, 1))
