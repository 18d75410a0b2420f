"""How attention to the image shifts from one word of the question to the next.

Stage A of GIFT (*Gaze Shift-Guided Cross-modal Fusion Enhancement*, 2025, arXiv 2510.22067): as a
model reads a question behind an image, each head's weight on the image at a token minus that at the
token before it, where positive, says what the token made the head look at:

    d[h, i, j] = max(a[h, i, j] - a[h, i - 1, j], 0)        i in the question, j in the image

Weight that was there all along (sinks) drops out. Only tokens of content words count, and the half
of a layer's heads with the largest sum.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.asked import AskedWord, find_asked
from analysis.vision.function_words import FUNCTION_WORDS
from probes.inputs import InputError

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.tokens.map import TowerTokens

KEEP = 0.5
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Question:
    """A question behind an image; positions are within the row.

    Attributes:
        positions: of all tokens of the question that stand behind the image, ascending.
        words: those of its words.
        image: positions of the image.
    """

    positions: tuple[int, ...]
    words: tuple[AskedWord, ...]
    image: tuple[int, ...]

    @property
    def content(self) -> list[int]:
        """Indices into ``positions`` of the tokens of content words."""
        wanted = {place for word in self.words if word.content for place in word.positions}
        return [index for index, place in enumerate(self.positions) if place in wanted]


def questions_of(
    tokens: TowerTokens,
    batch: Batch,
    what: str,
    function_words: Collection[str] = FUNCTION_WORDS,
) -> list[Question]:
    """The question of each example of a batch.

    Args:
        what: what needs them, for the sentences.

    Raises:
        InputError: an example has no image, its question is not found behind the image, or holds
            no content word; `example_id` names it.
    """
    found = []
    for row, example in enumerate(batch.examples):
        begin, end = int(tokens.starts[row]), int(tokens.starts[row + 1])
        image = tokens.has_role("image")[begin:end].nonzero()[:, 0].tolist()
        if not image:
            raise InputError(
                f"Example {example.id!r} must have an image for {what}, it has none. "
                "Leave it out, or give it one.",
                example.id,
            )
        start = batch.answer_starts[row] if batch.answer_starts else -1
        asked = find_asked(tokens, row, example, start if start >= 0 else None, function_words)
        positions = () if asked is None else asked.positions
        behind = tuple(place for place in positions if place > image[-1])
        if asked is None or not behind:
            raise InputError(
                f"Example {example.id!r}: {what} follows a question behind its image, and none is "
                "found there. Give the image first, then a question of your own.",
                example.id,
            )
        words = tuple(word for word in asked.words if word.positions[-1] > image[-1])
        question = Question(behind, words, tuple(image))
        if not question.content:
            raise InputError(
                f"Example {example.id!r}: {what} needs a word with content in the question, "
                f"{example.prompt!r} has none. Ask for something, or give other function words.",
                example.id,
            )
        found.append(question)
    return found


def positive_shifts(call: AttentionCall, questions: Sequence[Question]) -> list[Tensor]:
    """d for each example: float32 ``[head token image]``, tokens as in `Question.positions`.

    Args:
        call: a call that reads whole prompts; rows of its batch axis are the examples.
    """
    low = min(question.positions[0] for question in questions) - 1
    high = max(question.positions[-1] for question in questions) + 1
    pattern = call.pattern_of(slice(max(low, 0), high))
    found = []
    for row, question in enumerate(questions):
        here = torch.tensor(question.positions, device=pattern.device) - max(low, 0)
        image = torch.tensor(question.image, device=pattern.device)
        of_row = pattern[row][..., image]
        # An image stands before the question, so there always is a token before its first one.
        found.append((of_row[:, here] - of_row[:, here - 1]).clamp_min(0))
    return found


def kept_heads(shifts: Tensor, keep: float = KEEP) -> Tensor:
    """Long ``[kept]``: the heads of ``[head token image]`` with the largest sums."""
    count = max(1, int(shifts.shape[0] * keep))
    return shifts.sum((1, 2)).topk(count).indices


def saliency(layers: Sequence[Tensor], keep: float = KEEP) -> Tensor:
    """Float ``[image]``: mean shift, clipped to mean ± 3 std and stretched to 0 to 1.

    All 0 where the map is flat: then nothing of the image stands out.

    Args:
        layers: ``[head token image]`` of the content tokens, for each saliency layer.
    """
    means = [shifts[kept_heads(shifts, keep)].mean((0, 1)) for shifts in layers]
    mean = torch.stack(means).mean(0)
    if mean.numel() < 2:
        return torch.zeros_like(mean)
    centre, spread = mean.mean(), mean.std()
    clipped = mean.clamp(centre - _DEVIATIONS * spread, centre + _DEVIATIONS * spread)
    low, high = clipped.min(), clipped.max()
    if not bool(high > low):
        return torch.zeros_like(mean)
    return (clipped - low) / (high - low)
