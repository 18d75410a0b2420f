"""When each token of a batch was written."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class Pace:
    """Notes when each token was there; given to `generate` as a criterion that never stops it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self.first = self.last = time.perf_counter()
        self.steps = 0

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.last = time.perf_counter()
        self.steps += 1
        if self.steps == 1:
            self.first = self.last
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
