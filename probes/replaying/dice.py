"""The same random numbers again, for models that draw some even in evaluation (a masked patch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Dice = tuple[torch.device, Tensor, Tensor | None]
"""A device and the states of the generators, CPU first."""


def dice_on(device: torch.device) -> Dice:
    """The state of PyTorch's own generators now."""
    on_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return device, torch.get_rng_state(), on_cuda


def were_thrown(dice: Dice) -> bool:
    """Whether random numbers were drawn since."""
    device, cpu, cuda = dice
    _, cpu_now, cuda_now = dice_on(device)
    if cuda is not None and cuda_now is not None and not torch.equal(cuda, cuda_now):
        return True
    return not torch.equal(cpu, cpu_now)


@contextmanager
def same_dice(dice: Dice | None) -> Iterator[None]:
    """The random numbers that came after ``dice``; afterwards the generators are as before."""
    if dice is None:
        yield
        return
    device, cpu, cuda = dice
    with torch.random.fork_rng(devices=[device] if cuda is not None else []):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
