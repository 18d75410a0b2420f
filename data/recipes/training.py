"""One training loop for every recipe: AdamW, warm-up, cosine decay, clipped gradients."""

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def fit(
    loss_at: Callable[[int], Tensor],
    groups: list[tuple[nn.Module, float]],
    steps: int,
    *,
    name: str,
    weight_decay: float = 0.01,
    warmup: int = 50,
    floor: float = 0.05,
    report_every: int = 100,
) -> float:
    """Minimise `loss_at(step)` over the modules in `groups`, each with its own peak learning rate.

    Args:
        loss_at: draws the batch of one step and returns its scalar loss.
        groups: (module, peak learning rate) pairs; a module given twice keeps the first rate.
        floor: the share of the peak rate that is left at the end of the cosine.

    Returns:
        seconds the steps took, wall clock.
    """
    seen: set[nn.Parameter] = set()
    parameter_groups = []
    for module, rate in groups:
        fresh = [p for p in module.parameters() if p.requires_grad and p not in seen]
        seen.update(fresh)
        parameter_groups.append({"params": fresh, "lr": rate})
    optimizer = torch.optim.AdamW(parameter_groups, betas=(0.9, 0.98), weight_decay=weight_decay)

    def rate_at(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at)
    started = time.perf_counter()
    running = None
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in parameter_groups for p in g["params"]], 1.0)
        optimizer.step()
        schedule.step()
        running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % report_every == 0 or step + 1 == steps:
            elapsed = time.perf_counter() - started
            log.info("%s step %d/%d loss %.3f (%.0f s)", name, step + 1, steps, running, elapsed)
    return time.perf_counter() - started
