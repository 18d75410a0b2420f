"""Wrong targets for the null: another class, another word of the same example."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from probes.inputs import Example


def other_classes(
    examples: Sequence[Example], target: Tensor, classes: int, seed: int = 0
) -> Tensor:
    """Long ``[example]``: for each example one of the other classes; -1 where there is only one.

    Which one depends on the example's id and the seed alone.
    """
    if classes < 2:
        return torch.full_like(target, -1)
    steps = [1 + _number(example.id, seed) % (classes - 1) for example in examples]
    return (target + torch.tensor(steps)) % classes


def other_words(
    examples: Sequence[Example], example: Tensor, target: Tensor, words: int, seed: int = 0
) -> Tensor:
    """Long ``[read]``: for each read another target of its example; a random word if all are one.

    Args:
        example: long ``[read]``: the example that a read belongs to.
        words: how many there are.
    """
    shuffled = torch.empty_like(target)
    for row, item in enumerate(examples):
        mine = (example == row).nonzero()[:, 0]
        own = target[mine]
        draw = torch.Generator().manual_seed(_number(item.id, seed) % 2**31)
        if own.unique().numel() < 2:
            step = torch.randint(1, max(words, 2), own.shape, generator=draw)
            shuffled[mine] = (own + step) % max(words, 2)
            continue
        choice = torch.randint(0, own.numel(), own.shape, generator=draw)
        for _ in range(own.numel()):
            same = own[choice] == own
            if not bool(same.any()):
                break
            choice = torch.where(same, (choice + 1) % own.numel(), choice)
        shuffled[mine] = own[choice]
    return shuffled


def _number(example_id: str, seed: int) -> int:
    text = f"{seed}\0{example_id}\0target".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
