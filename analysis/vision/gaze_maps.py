"""What each word of a question made a model look at: a map per word, for pictures and tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.asked import AskedWord
from analysis.vision.function_words import FUNCTION_WORDS
from analysis.vision.gaze import KEEP, Question, kept_heads, positive_shifts, questions_of, saliency
from analysis.vision.seeing import reading_tower
from probes.heads import Site
from probes.listening import listen

if TYPE_CHECKING:
    import pandas as pd

    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens

_WHAT = "gaze_maps"


@dataclass(frozen=True)
class Gaze:
    """What a question made one layer look at in one example.

    Attributes:
        words: of the question, function words included.
        positions: long ``[image]``: flat positions in the token map, for places and boxes.
        by_word: float ``[word image]``: mean over the kept heads and the word's tokens of the
            positive shift.
        accumulated: float ``[image]``: GIFT's saliency over content words, 0 to 1.
        static: float ``[image]``: plain weight, mean over the same heads and tokens.
        totals: layer -> its total positive shift over content tokens, mean over heads. GIFT takes
            the layer with the largest one, which it finds to be a property of the model.
    """

    example: str
    layer: int
    words: tuple[AskedWord, ...]
    positions: Tensor
    by_word: Tensor
    accumulated: Tensor
    static: Tensor
    totals: Mapping[int, float]

    def to_frame(self, tokens: TowerTokens) -> pd.DataFrame:
        """One line per word and image position: ``example word content tile row column shift``."""
        import pandas as pd

        count = len(self.positions)
        return pd.DataFrame(
            {
                "example": self.example,
                "layer": self.layer,
                "place": [index for index in range(len(self.words)) for _ in range(count)],
                "word": [word.text for word in self.words for _ in range(count)],
                "content": [word.content for word in self.words for _ in range(count)],
                "image": tokens.image[self.positions].repeat(len(self.words)).numpy(),
                "tile": tokens.tile[self.positions].repeat(len(self.words)).numpy(),
                "row": tokens.row[self.positions].repeat(len(self.words)).numpy(),
                "column": tokens.column[self.positions].repeat(len(self.words)).numpy(),
                "shift": self.by_word.flatten().double().numpy(),
            }
        )


def gaze_maps(
    subject: Subject,
    batch: Batch,
    layer: int | None = None,
    keep: float = KEEP,
    function_words: Collection[str] = FUNCTION_WORDS,
) -> list[Gaze]:
    """For every example what each word of its question made a layer look at. One forward.

    Args:
        layer: of the tower that writes; by default the one with the largest total shift over the
            batch.
        keep: share of the layer's heads that count, those that shift most.

    Raises:
        ValueError: the model does not read images and text.
        InputError: an example without an image, a question, or a content word in it.
    """
    tower = reading_tower(subject, _WHAT)
    tokens = batch.tokens[tower.name]
    questions = questions_of(tokens, batch, _WHAT, function_words)
    shifts: dict[int, list[Tensor]] = {}
    static: dict[int, list[Tensor]] = {}

    def hear(call: AttentionCall) -> None:
        shifts[call.site.layer] = [d.cpu() for d in positive_shifts(call, questions)]
        static[call.site.layer] = _plain(call, questions)

    sites = [Site(tower.name, known) for known in tower.sites]
    with listen(subject, batch, hear, sites):
        subject.forward(batch)
    totals = [_totals(shifts, row, question) for row, question in enumerate(questions)]
    if layer is None:
        layer = max(shifts, key=lambda known: sum(of_row[known] for of_row in totals))
    elif layer not in shifts:
        raise ValueError(
            f"`layer` must be one of {tower.name}, which has {', '.join(map(str, shifts))}, got "
            f"{layer}."
        )
    made = []
    for row, (question, example) in enumerate(zip(questions, batch.examples, strict=True)):
        d, content = shifts[layer][row], question.content
        heads = kept_heads(d[:, content], keep)
        places = {place: index for index, place in enumerate(question.positions)}
        by_word = [
            d[heads][:, [places[p] for p in word.positions if p in places]].mean((0, 1))
            for word in question.words
        ]
        made.append(
            Gaze(
                example.id,
                layer,
                question.words,
                torch.tensor(question.image) + int(tokens.starts[row]),
                torch.stack(by_word),
                saliency([d[:, content]], keep),
                static[layer][row][heads][:, content].mean((0, 1)),
                totals[row],
            )
        )
    return made


def _plain(call: AttentionCall, questions: list[Question]) -> list[Tensor]:
    low = min(question.positions[0] for question in questions)
    high = max(question.positions[-1] for question in questions) + 1
    pattern = call.pattern_of(slice(low, high)).cpu()
    return [
        pattern[row][:, torch.tensor(question.positions) - low][..., list(question.image)]
        for row, question in enumerate(questions)
    ]


def _totals(shifts: dict[int, list[Tensor]], row: int, question: Question) -> dict[int, float]:
    return {
        layer: float(of_layer[row][:, question.content].sum((1, 2)).mean())
        for layer, of_layer in shifts.items()
    }
