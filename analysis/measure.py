"""What a measure is: how it says where it applies, and what it hands back for one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor

from probes.heads import Site
from probes.tokens.map import TowerTokens

if TYPE_CHECKING:
    from analysis.call_view import CallView
    from probes.inputs import Batch


@dataclass(frozen=True)
class MeasureContext:
    """What is known of an attention layer before anything is measured in it.

    Attributes:
        tokens, key_tokens: token maps of queries and keys; ``None`` where the positions of the
            call cannot be told (windows in the batch axis, a tower without a token map).
        heads: number of query heads.
        has_output_matrix: whether the anatomy knows the heads' output matrix.
        batch: what is run, where it is known: its examples may have answers, objects, boxes.
    """

    site: Site
    heads: int
    tokens: TowerTokens | None
    key_tokens: TowerTokens | None
    has_output_matrix: bool = False
    batch: Batch | None = None

    @property
    def same_tower(self) -> bool:
        """Whether queries and keys are positions of one tower (self-attention)."""
        return (
            self.tokens is not None
            and self.key_tokens is not None
            and self.tokens.tower == self.key_tokens.tower
        )

    def needs_positions(self) -> Literal[True] | str:
        """True, or why measures that must know each position cannot be had here."""
        if self.tokens is None or self.key_tokens is None:
            return (
                f"The positions of {self.site.tower} are not known in its attention calls, so "
                "position and role measures are not measured there."
            )
        return True


@dataclass
class Score:
    """One variant of a measure for all heads of a call, summed within each example.

    Attributes:
        variant: the parameters, for example ``"eps=0.3"``; empty for the plain measure.
        numerator: float64 ``[example head]``.
        denominator: float64 ``[example head]`` or ``[example 1]``.
        null: numerator and denominator of the null, where it is not the uniform pattern.
        unit: of this variant, where it is not the measure's.
    """

    variant: str
    numerator: Tensor
    denominator: Tensor
    null: tuple[Tensor, Tensor] | None = None
    unit: str = ""


@dataclass
class Profile:
    """A curve of one call, summed over examples: float64 ``[head point]`` (or ``[1 point]``).

    A denominator that is the same at all points is ``[head 1]`` or ``[1 1]``: then points that
    this call is too short for count as 0 in it.
    """

    axis: str
    numerator: Tensor
    denominator: Tensor


Result = Score | Profile
Finish = Callable[[], Iterable[Result]]


@runtime_checkable
class Measure(Protocol):
    """A streaming statistic per head.

    Attributes:
        name: an identifier, the ``measure`` column of the head table.
        unit: ``nats``, ``share``, ``tokens``, ``patches``, ``keys``, ``cosine``, ``norm`` ...
        costly: left out of "all", has to be named.
        reads_pattern: whether its null is itself on the uniform pattern. A measure that reads
            something else (z), or whose null is another, hands `Score.null` back.
    """

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def costly(self) -> bool: ...
    @property
    def reads_pattern(self) -> bool: ...

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        """True, or one sentence that says why it cannot be measured here."""
        ...

    def start(self, call: CallView) -> Finish:
        """Ask the call for what the measure needs; the function given back makes the scores.

        It is called once the last tile of the call has passed.
        """
        ...
