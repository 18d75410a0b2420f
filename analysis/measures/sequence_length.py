"""How long the sequences are: many measures, those of sinks above all, depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score


@dataclass(frozen=True)
class SequenceLength:
    """T: number of positions of a sequence, padding not counted; the same for all heads."""

    name: str = "sequence_length"
    unit: str = "tokens"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        def finish() -> Iterator[Score]:
            if not call.step:  # a step of generation is one query
                plan = call.plan
                length = plan.queries_by_block[:, None].expand(-1, call.heads)
                yield Score("", plan.sum_blocks(length), plan.count_blocks())

        return finish


SEQUENCE_LENGTH = SequenceLength()
