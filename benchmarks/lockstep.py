"""Two generations at once, token by token in turn: what slows the machine slows both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Criterion = Callable[..., Any]
Generate = Callable[[Criterion], object]
"""Generates, calling the criterion after every token (transformers' ``stopping_criteria``)."""


@dataclass
class _Runner:
    run: Generate
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    clocks: list[dict[str, float]] = field(default_factory=list)
    done: bool = False
    failed: BaseException | None = None


def lockstep(plain: Generate, other: Generate, device: str = "cpu") -> list[dict[str, float]]:
    """Of each forward of both (of the prompt, then of each token that is fed back): ``plain`` and
    ``seconds``, on the wall and in CPU time of the process (``plain_cpu``, ``seconds_cpu``).

    Each generation has a thread of its own, in which alone its taps act; only one runs at a time.

    Raises:
        Whatever either raised.
    """
    runners = (_Runner(plain), _Runner(other))
    threads = [
        threading.Thread(target=_work, args=(runners, number, device), daemon=True)
        for number in (0, 1)
    ]
    for thread in threads:
        thread.start()
    runners[0].turn.release()
    for thread in threads:
        thread.join()
    for runner in runners:
        if runner.failed is not None:
            raise runner.failed
    steps = zip(runners[0].clocks, runners[1].clocks, strict=True)
    return [
        {
            f"{name}{clock}": step[clock]
            for name, step in (("plain", one), ("seconds", two))
            for clock in ("", "_cpu")
        }
        for one, two in steps
    ]


def _work(runners: Sequence[_Runner], number: int, device: str) -> None:
    import torch

    mine, its = runners[number], runners[1 - number]
    began = _clocks(device)

    def wait() -> None:
        nonlocal began
        while not its.done and not mine.turn.acquire(timeout=0.2):
            pass
        began = _clocks(device)

    def criterion(ids: Any, scores: Any, **_: Any) -> Any:
        now = _clocks(device)
        mine.clocks.append({name: now[name] - began[name] for name in now})
        if not its.done:
            its.turn.release()
            wait()
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    mine.turn.acquire()
    began = _clocks(device)
    try:
        mine.run(criterion)
    except BaseException as error:  # raised again by whoever waits for both
        mine.failed = error
    finally:
        mine.done = True
        its.turn.release()


def _clocks(device: str) -> dict[str, float]:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return {"": time.perf_counter(), "_cpu": time.process_time()}
