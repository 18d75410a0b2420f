"""Which positions of a tower are the image, the text before and after it, the answer.

Roles alone do not tell the text before an image from that behind it, nor an answer that is read
(teacher forcing) from its question: both are ``text``. This does, from the token map and the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.asked import Asked, find_asked
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.inputs import Batch

_WRITES = ("language", "decoder", "cross")
_DECODES = ("decoder", "cross")


@dataclass(frozen=True)
class PromptParts:
    """Columns over the flat positions of a tower's token map, bool ``[n]``.

    ``image``, ``output``, ``before``, ``between`` and ``after`` share out the positions of rows
    that hold an image, padding left out; rows without one have nothing before or after it.

    Attributes:
        image: positions of images.
        output: generated positions, and those of an answer that the model is made to read.
        before, between, after: the rest of the prompt, by its side of the image.
        first: BOS, or what else begins the row's text where no BOS does.
        own: tokens of what the user asks, as `find_asked` finds it.
        predicting: positions at which a token of the output is predicted: the one before each.
        deciding: in each row the position at which the output's first token is predicted; in a
            row without output its last one, where the next token would be.
        unanswered: all positions of rows without output.
        asked: what each row asks; None where it is not known.
    """

    image: Tensor
    output: Tensor
    before: Tensor
    between: Tensor
    after: Tensor
    first: Tensor
    own: Tensor
    predicting: Tensor
    deciding: Tensor
    unanswered: Tensor
    asked: tuple[Asked | None, ...]

    @property
    def telling(self) -> Tensor:
        """Bool ``[n]``: ``predicting``; in rows without output, what is behind the image.

        The queries that decide what is said, or as near to them as a prompt alone comes.
        """
        return self.predicting | (self.after & self.unanswered)


def prompt_parts(tokens: TowerTokens, batch: Batch | None = None) -> PromptParts:
    """The parts of every row of a tower.

    Args:
        tokens: of the tower, generated positions included.
        batch: tells where answers begin and what is asked; without it both are unknown.
    """
    n = len(tokens)
    real = ~tokens.has_role("pad")
    image = tokens.has_role("image")
    output = tokens.has_role("generated") | _answers(tokens, batch)
    output &= real
    columns = {
        name: torch.zeros(n, dtype=torch.bool)
        for name in ("before", "between", "after", "first", "own", "deciding", "unanswered")
    }
    asked: list[Asked | None] = []
    starts = tokens.starts.tolist()
    for row, (begin, end) in enumerate(pairwise(starts)):
        mine = slice(begin, end)
        prompt = (real & ~output)[mine]
        _sides(columns, mine, prompt & ~image[mine], image[mine])
        _ends(columns, tokens, mine, real[mine], output[mine])
        found = _asked(tokens, batch, row, output[mine])
        asked.append(found)
        if found is not None:
            columns["own"][begin + torch.tensor(found.positions)] = True
    following = torch.zeros(n, dtype=torch.bool)
    following[:-1] = output[1:]
    following[tokens.starts[1:] - 1] = False
    following &= real
    return PromptParts(
        image=image & real,
        output=output,
        before=columns["before"],
        between=columns["between"],
        after=columns["after"],
        first=columns["first"] & ~image,
        own=columns["own"],
        predicting=following,
        deciding=columns["deciding"],
        unanswered=columns["unanswered"],
        asked=tuple(asked),
    )


def _sides(columns: dict[str, Tensor], mine: slice, text: Tensor, image: Tensor) -> None:
    places = image.nonzero()[:, 0]
    if not len(places):
        return
    position = torch.arange(len(image))
    columns["before"][mine] = text & (position < places[0])
    columns["between"][mine] = text & (position > places[0]) & (position < places[-1])
    columns["after"][mine] = text & (position > places[-1])


def _ends(
    columns: dict[str, Tensor], tokens: TowerTokens, mine: slice, real: Tensor, output: Tensor
) -> None:
    places = real.nonzero()[:, 0]
    if not len(places):
        return
    bos = (tokens.role[mine] == ROLES.index("bos")).nonzero()[:, 0]
    columns["first"][mine.start + int(bos[0] if len(bos) else places[0])] = True
    written = output.nonzero()[:, 0]
    prompt = places[places < written[0]] if len(written) else places
    if len(prompt):
        columns["deciding"][mine.start + int(prompt[-1])] = True
    columns["unanswered"][mine] = not len(written)


def _answers(tokens: TowerTokens, batch: Batch | None) -> Tensor:
    found = torch.zeros(len(tokens), dtype=torch.bool)
    for row, start in enumerate(_answer_starts(tokens, batch)):
        if start >= 0:
            found[int(tokens.starts[row]) + start : int(tokens.starts[row + 1])] = True
    return found


def _answer_starts(tokens: TowerTokens, batch: Batch | None) -> Sequence[int]:
    """Where answers begin in the rows of a tower, empty where it does not read them."""
    if batch is None or not batch.answer_starts or tokens.rows != batch.size:
        return ()
    kind = tokens.tower.split("_")[0]
    decodes = "decoder_input_ids" in batch.tensors
    if kind not in (_DECODES if decodes else _WRITES):
        return ()
    ids = batch.tensors.get("decoder_input_ids" if decodes else "input_ids")
    if not isinstance(ids, Tensor) or bool((tokens.lengths < ids.shape[1]).any()):
        return ()
    return batch.answer_starts


def _asked(tokens: TowerTokens, batch: Batch | None, row: int, output: Tensor) -> Asked | None:
    if batch is None or tokens.rows != batch.size:
        return None
    written = output.nonzero()[:, 0]
    stop = int(written[0]) if len(written) else None
    return find_asked(tokens, row, batch.examples[row], stop)
