"""What an answer is explained by: an image or an encoder's input, in pieces that can be hidden."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.answer_score import AnswerTokens, answer_tokens, log_probabilities
from analysis.vision.occlusion import MOST_BLOCKS, Blocks, covered, image_blocks, text_blocks
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch, Example
    from probes.subject import Subject

AT_ONCE = 16
"""Occluded copies of an example in one forward."""
_WRITES = ("language", "decoder", "cross")
Prepare = Callable[[Sequence["Example"]], "Batch"]


@dataclass(frozen=True)
class Source:
    """A tower whose positions are explained, and the layers that read them.

    Attributes:
        tower: of the keys.
        sites: that attend to it while they write.
        cross: whether queries are of another tower.
    """

    tower: str
    sites: tuple[Site, ...]
    cross: bool


def sources_of(subject: Subject) -> list[Source]:
    """Where a model that writes reads an image, or an encoder.

    Raises:
        ValueError: it writes nothing, or reads nothing but its own words.
    """
    by_tower: dict[str, list[Site]] = {}
    for site in subject.layout.sites:
        if site.site.tower.split("_")[0] == "cross" and site.key_tower != site.site.tower:
            by_tower.setdefault(site.key_tower, []).append(site.site)
    found = [Source(tower, tuple(sites), True) for tower, sites in by_tower.items()]
    if subject.kind == "vision-language" and "language" in subject.towers and not found:
        sites = [site.site for site in subject.layout.sites if site.site.tower == "language"]
        found = [Source("language", tuple(sites), False)]
    if not found or not any(tower.split("_")[0] in _WRITES for tower in subject.towers):
        raise ValueError(
            "Saliency explains an answer by the image, or by what an encoder reads, and "
            f"{subject.name!r} is a {subject.kind} model. Choose a model that reads images and "
            "text, or an encoder-decoder."
        )
    return found


def blocks_of(source: Source, batch: Batch, row: int, most: int = MOST_BLOCKS) -> Blocks:
    """The pieces of one example: patches where the source shows an image, else tokens."""
    tokens = batch.tokens[source.tower]
    mine = tokens.example == row
    image = (mine & tokens.has_role("image")).nonzero()[:, 0]
    if len(image) and not bool(tokens.box[image].isnan().all()):
        return image_blocks(tokens, image, most)
    if len(image) or not source.cross:
        return text_blocks(image, most)  # positions that stand for no place (learned queries)
    return text_blocks((mine & ~tokens.has_role("pad")).nonzero()[:, 0], most)


def occlusion_drops(
    subject: Subject, batch: Batch, row: int, source: Source, blocks: Blocks, prepare: Prepare
) -> Tensor | None:
    """Float32 ``[piece token]``: what each token of an answer loses, in nats, piece by piece.

    Costs one forward for `AT_ONCE` pieces. None where pieces cannot be hidden (learned queries).

    Args:
        prepare: makes a batch of copies of the example, answers included.
    """
    example = batch.examples[row]
    if blocks.places:
        copies = covered(example, blocks.places)
        batches = [prepare(copies[i : i + AT_ONCE]) for i in range(0, len(copies), AT_ONCE)]
        whole = prepare([example])
    elif source.cross and not example.pictures and "attention_mask" in batch.tensors:
        whole = prepare([example])
        batches = _masked(batch, row, source, blocks, whole)
    else:
        return None
    intact = log_probabilities(subject, whole, answer_tokens(whole))
    drops = []
    for one in batches:
        tokens = answer_tokens(one)
        values = log_probabilities(subject, one, tokens)
        drops.append(intact[None] - values.view(one.size, -1))
    return torch.cat(drops).cpu()


def _masked(batch: Batch, row: int, source: Source, blocks: Blocks, whole: Batch) -> list[Batch]:
    """The example once for each piece, with the piece's tokens masked in the encoder."""
    start = int(batch.tokens[source.tower].starts[row])
    mask = batch.tensors["attention_mask"][row].bool().cpu()
    # The example alone has no padding: its k-th token is the k-th real one of the row.
    place = mask.long().cumsum(0)[blocks.positions - start] - 1
    made = []
    for first in range(0, blocks.count, AT_ONCE):
        chosen = range(first, min(first + AT_ONCE, blocks.count))
        repeated = _repeated(whole, len(chosen))
        hidden = repeated.tensors["attention_mask"].clone()
        for line, piece in enumerate(chosen):
            hidden[line, place[blocks.block == piece].to(hidden.device)] = 0
        made.append(replace(repeated, tensors={**repeated.tensors, "attention_mask": hidden}))
    return made


def _repeated(whole: Batch, count: int) -> Batch:
    tensors = {
        name: value.expand(count, *value.shape[1:]).clone() if isinstance(value, Tensor) else value
        for name, value in whole.tensors.items()
    }
    return replace(
        whole,
        tensors=tensors,
        examples=whole.examples * count,
        answer_starts=whole.answer_starts * count,
    )


def tokens_of_row(tokens: AnswerTokens, row: int) -> Tensor:
    """Long ``[token of the row]``: which of a batch's answer tokens are a row's."""
    return (tokens.example == row).nonzero()[:, 0]
