"""Several processes that train the same coders, each on its part of the data.

Started by ``torchrun`` (or after ``torch.distributed.init_process_group``), every process holds
the same coders and takes the same steps: gradients are averaged, counts summed. With one process
everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: number of this one, from 0; number 0 writes the files.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this one writes what all share."""
        return self.rank == 0

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; the tensor itself where there is one."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.count == 1:
            return
        # One by one: the gradients of a large coder are not copied together a second time.
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= self.count

    def gathered(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "all_rows width"]:
        """The rows of all processes, those of process 0 first; all must hold equally many."""
        if self.count == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=_message_device())
        distributed.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.totals([0.0])


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this training; joined by torchrun's variables where that has not been done.

    Tensors on GPUs are then sent by NCCL where torch has it, all others by gloo.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_gpu = torch.cuda.is_available() and distributed.is_nccl_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        try:
            yield Processes(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()
    else:
        yield Processes()


def _message_device() -> torch.device:
    """Where numbers must lie to be sent: a group that the user made may know GPUs alone."""
    if "cpu:" in distributed.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def own_device(device: str | None) -> str | None:
    """Where a process of several that torchrun started puts its model: one GPU each.

    As it is where another device is named than ``cuda``, where there is no GPU, or for one process.
    """
    apart = int(os.environ.get("WORLD_SIZE", "1")) > 1 and device in (None, "cuda")
    if not apart or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', os.environ.get('RANK', '0'))}"


def device_of(device: str | None, processes: Processes) -> torch.device | None:
    """The device of this process: with ``cuda`` and several processes, one GPU each.

    Raises:
        ValueError: the device is not there.
    """
    if device is None:
        return None
    chosen = torch.device(device)
    if chosen.type == "cuda":
        there = torch.cuda.device_count()
        if chosen.index is None and processes.count > 1:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", processes.rank)))
        if (chosen.index or 0) >= there:
            raise ValueError(
                f"`device` must be one of the {there} GPUs that torch sees, got {chosen}. "
                "Choose another, or cpu."
            )
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("`device` must be there, got mps, which torch does not see. Use cpu.")
    return chosen
