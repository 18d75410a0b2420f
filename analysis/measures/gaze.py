"""How much the words of a question make a head look at the image anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.part_masses import needs_text_and_image, parts_of_queries
from analysis.measures.picked_rows import image_maps, pick_rows, places_of, queries_at

ASKED = "asked"
GROUPS = ("content", "function")


@dataclass(frozen=True)
class GazeShift:
    """Weight on the image that a word of the question newly draws, 0 to 1 per token.

    Per token of the question the sum over the image of ``max(a[i, j] - a[i - 1, j], 0)``: stage A
    of GIFT (2025, arXiv 2510.22067), see `analysis.vision.gaze`. Variant ``words=content`` is the
    mean over tokens of content words, ``words=function`` over the others: a head that follows the
    meaning of the question has more of the first.
    """

    name: str = "gaze_shift"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        verdict = needs_text_and_image(context, self.name)
        if verdict is True and context.batch is None:
            return (
                f"{self.name} must know what is asked, and nobody said which examples are run, so "
                "it is not measured."
            )
        return verdict

    def start(self, call: CallView) -> Finish:
        if call.step:
            return tuple
        plan = call.plan
        token, before = plan.memo("asked tokens", lambda: _asked_tokens(plan))
        rows = pick_rows(call, ASKED, queries_at(plan, torch.cat([token, before])))

        def finish() -> Iterator[Score]:
            if not len(token):
                return
            maps, _ = image_maps(call, rows, ASKED)
            here, there = (maps[rows.index(flat)] for flat in (token, before))
            drawn = (here - there).clamp_min(0).double().sum(-1)
            example = rows.picks.example[rows.index(token)]
            content = plan.memo("content tokens", lambda: _content(plan)).to(token.device)
            for group in GROUPS:
                mine = (content[token] == (group == "content")).double()[:, None]
                sums = [
                    part.new_zeros(plan.examples, part.shape[1]).index_add_(0, example, part)
                    for part in (drawn * mine, mine)
                ]
                yield Score(f"words={group}", sums[0], sums[1])

        return finish


def _asked_tokens(plan: CallPlan) -> tuple[Tensor, Tensor]:
    """Long ``[token]`` twice: flat positions of the words asked behind an image, and those before.

    Punctuation is no word.
    """
    parts, tokens = parts_of_queries(plan), plan.tokens
    assert tokens is not None
    flat = sorted(
        int(tokens.starts[row]) + place
        for row, asked in enumerate(parts.asked)
        if asked is not None
        for place in {place for word in asked.words for place in word.positions}
    )
    found = torch.tensor([place for place in flat if parts.after[place]], dtype=torch.long)
    places = places_of(plan).cpu()
    found = found[(places[found] >= 0).all(-1) & (places[found - 1] >= 0).all(-1)]
    return found.to(plan.device), found.to(plan.device) - 1


def _content(plan: CallPlan) -> Tensor:
    """Bool ``[n]``: tokens of content words."""
    parts, tokens = parts_of_queries(plan), plan.tokens
    assert tokens is not None
    found = torch.zeros(len(tokens), dtype=torch.bool)
    for row, asked in enumerate(parts.asked):
        for word in () if asked is None else asked.words:
            if word.content:
                found[int(tokens.starts[row]) + torch.tensor(word.positions)] = True
    return found


GAZE_SHIFT = GazeShift()
