"""Maps of attention and of saliency over the pieces of an input, for groups of answer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.hallucination.vocabulary import Vocabulary
from analysis.vision.answer_score import AnswerTokens
from analysis.vision.named_objects import mentions_in
from analysis.vision.occlusion import Blocks
from analysis.vision.prompt_parts import prompt_parts
from analysis.vision.saliency_sources import Source
from probes.heads import Site
from probes.listening import listen
from probes.tap import TapError

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject

ANSWER, OBJECT = "answer", "object"


@dataclass(frozen=True)
class Group:
    """Tokens of one answer that are explained together.

    Attributes:
        name: ``answer`` (all of them) or ``object`` (those of one object's name).
        row: of the batch.
        tokens: long ``[token]``: indices into the batch's `AnswerTokens`.
    """

    name: str
    row: int
    tokens: Tensor


def groups_of(batch: Batch, tokens: AnswerTokens) -> list[Group]:
    """The answer of every example, and each mention of an object that is in its image."""
    tower = batch.tokens[tokens.tower]
    parts = prompt_parts(tower, batch)
    flat = tower.starts[tokens.example] + tokens.position
    place = {int(position): index for index, position in enumerate(flat.tolist())}
    found = []
    for row, example in enumerate(batch.examples):
        mine = (tokens.example == row).nonzero()[:, 0]
        found.append(Group(ANSWER, row, mine))
        if not example.objects:
            continue
        vocabulary = Vocabulary.of(dict.fromkeys(example.objects))
        for _, positions in mentions_in(tower, parts, row, vocabulary):
            known = [place[position] for position in positions if position in place]
            if known:
                found.append(Group(OBJECT, row, torch.tensor(known)))
    return found


def attention_maps(
    subject: Subject,
    batch: Batch,
    tokens: AnswerTokens,
    groups: Sequence[Group],
    source: Source,
    blocks: Sequence[Blocks],
) -> dict[Site, list[Tensor]]:
    """By layer and group float64 ``[head piece]``: mean weight of the tokens' predicting queries.

    Args:
        blocks: of each example of the batch.

    Raises:
        TapError: it is not known which key is which position.
    """
    found: dict[Site, list[Tensor]] = {}

    def hear(call: AttentionCall) -> None:
        if call.key_index is None or call.batch != batch.size:
            raise TapError(
                f"The keys of {call.site} must be known to be set against saliency, they are not. "
                "Score one example at a time with `batch_size=1`."
            )
        found[call.site] = _maps_of(call, tokens, groups, blocks)

    with listen(subject, batch, hear, source.sites):
        subject.forward(batch)
    return found


def _maps_of(
    call: AttentionCall, tokens: AnswerTokens, groups: Sequence[Group], blocks: Sequence[Blocks]
) -> list[Tensor]:
    rows = _rows(call, tokens.example, tokens.position - 1)
    assert call.key_index is not None
    keys = []
    for row, of_row in enumerate(blocks):
        known = call.key_index[row].cpu()
        where = torch.full((int(max(known.max(), of_row.positions.max())) + 1,), -1)
        where[known[known >= 0]] = torch.arange(len(known))[known >= 0]
        keys.append(where[of_row.positions])
    maps = []
    for group in groups:
        mean = rows[group.tokens].double().mean(0)
        maps.append(blocks[group.row].summed(mean[:, keys[group.row]]))
    return maps


def _rows(call: AttentionCall, batch: Tensor, query: Tensor) -> Tensor:
    """Float32 ``[pick head key]``: some query rows of a call, on the CPU."""
    found = torch.zeros(len(batch), call.heads, call.keys)
    for tile in call.tiles():
        here = (batch >= tile.batch.start) & (batch < tile.batch.stop)
        here &= (query >= tile.rows.start) & (query < tile.rows.stop)
        mine = here.nonzero()[:, 0]
        if len(mine):
            own = batch[mine] - tile.batch.start, query[mine] - tile.rows.start
            device = tile.pattern.device
            picked = tile.pattern[own[0].to(device), :, own[1].to(device)]
            found[mine, :, : tile.keys] = picked.cpu()
    return found
