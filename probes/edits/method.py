"""What a method is: a published intervention, made of edits and of what they must see first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from probes.edits.edit import Edit, EditReport

if TYPE_CHECKING:
    from probes.edits.matched_random import MatchedRandom
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tap import Attached


@dataclass
class Prepared:
    """A method made ready for one subject and one ``with`` block; its edits may keep state.

    Attributes:
        edits: what changes scores, patterns or z.
        listeners: what the edits have to see: calls, z, the residual stream. They hear what the
            edits of the same call have left.
        before: called with every batch that is announced, before its first forward, and with the
            number of tokens that may be generated. It may run other batches through the subject:
            plain edits act meanwhile; this and other methods that look ahead or listen do not.
        logits: makes, for one batch, transformers' `LogitsProcessor`: for generation only. It
            counts in the report it is given: ``fired`` per call, ``touched`` per changed row.
        control: what is put in the place of the edits, if anything.
    """

    edits: tuple[Edit, ...] = ()
    listeners: tuple[Attached, ...] = ()
    before: Callable[[Batch, int], None] | None = None
    logits: Callable[[Batch, EditReport], Any] | None = None
    control: MatchedRandom | None = None


@runtime_checkable
class Method(Protocol):
    """An intervention of more than one part.

    Attributes:
        label: how reports and errors name it, such as ``vhr(alpha=2)``.
    """

    @property
    def label(self) -> str: ...

    def on(self, subject: Subject) -> Prepared:
        """Fresh edits and listeners for one ``with`` block.

        Raises:
            ValueError: the method cannot be used on this subject; the sentence says why.
        """
        ...
