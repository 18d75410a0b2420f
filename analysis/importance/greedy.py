"""Heads that matter together: taken away one after the other, each time the one that costs most.

Leave-one-out overlooks heads that stand in for one another: each can be spared while the others
are there. Here the second head is chosen with the first one gone, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from analysis.importance.set_effects import effects_of_sets
from probes.heads import Head

if TYPE_CHECKING:
    from analysis.importance.leave_one_out import Ablation
    from analysis.importance.targets import Data
    from probes.subject import Subject


def greedy_set(
    subject: Subject,
    data: Data,
    ablation: Ablation,
    candidates: Sequence[Head],
    count: int,
    *,
    only: Callable[[str], bool] | None = None,
    judged: Callable[[int], None] | None = None,
) -> list[Head]:
    """``count`` heads in the order in which they were taken; see `sets_tried` for the cost.

    Args:
        candidates: from the most important on its own; the first is taken first.
        only: says by its id whether an example counts; all by default.
        judged: as `effects_of_sets` takes it.

    Raises:
        ValueError: fewer candidates than heads to be taken.
    """
    if not 0 < count <= len(candidates):
        raise ValueError(f"`count` must be between 1 and {len(candidates)}, got {count}.")
    taken = [candidates[0]]
    while len(taken) < count:
        rest = [head for head in candidates if head not in taken]
        sets = [[*taken, head] for head in rest]
        found = effects_of_sets(
            subject, data, sets, ablation, only=only, replicates=1, judged=judged
        )
        taken.append(rest[int(found.change.value.argmax())])
    return taken


def sets_tried(candidates: int, count: int) -> int:
    """Sets of heads that the model is run without while ``count`` are taken from ``candidates``.

    >>> sets_tried(5, 3)  # the second is one of four, the third one of three
    7
    """
    return sum(candidates - taken for taken in range(1, count))
