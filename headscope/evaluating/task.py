"""What a task is: prompts to be answered, and what each answer is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from analysis.hallucination.sheet import Metric, Sheet
    from headscope.evaluating.answer_journal import Answer
    from probes.inputs import Example


class Task(Protocol):
    """A way of asking a model about images, and of judging what it says.

    Attributes:
        prompts: what is asked, each with an id of its own and without an answer.
        max_new_tokens: how long an answer may be unless the user says otherwise.
        about: what a plan says of the task beside its name.
        notes: sentences about the data that a reader of the numbers should know.
        skipped: examples that the task cannot use: id and reason.
        probes: id of a prompt -> beginning and continuation whose probability is wanted.
        units: metric -> unit.
        averages: metrics that are means of others.
    """

    @property
    def name(self) -> str: ...

    @property
    def prompts(self) -> Sequence[Example]: ...

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def skipped(self) -> Sequence[dict[str, str]]: ...

    @property
    def probes(self) -> Mapping[str, tuple[str, str]]: ...

    @property
    def units(self) -> Mapping[str, str]: ...

    @property
    def averages(self) -> Mapping[Metric, Sequence[Metric]]: ...

    def sheet(self, answers: Mapping[str, Answer]) -> Sheet:
        """What the answers add to each metric, by image."""
        ...

    def verdicts(self, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        """One record per answer: what was asked and said, and what is wrong with it."""
        ...
