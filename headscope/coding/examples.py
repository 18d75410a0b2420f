"""Which examples of some data coders are trained on, and which they are judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.inputs import Example
    from probes.subject import Subject
    from sae.activations import SubjectActivations

HELD_OUT = 0.1
CHUNK_EXAMPLES = 16


@dataclass(frozen=True)
class Parts:
    """Examples of one data set in two parts that share none.

    Attributes:
        name: of the data.
        train: what coders are trained on, or baselines fitted.
        held_out: what is judged on; empty where nothing was held out.
        facts: what a coder remembers of it, to leave out the same examples again.
    """

    name: str
    train: Sequence[Example] = field(repr=False)
    held_out: Sequence[Example] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_parts(
    subject: Subject,
    data: str | Path,
    *,
    held_out: float = HELD_OUT,
    context: int | None = None,
    limit: int | None = None,
    skip: Callable[[Example, str], None] | None = None,
) -> Parts:
    """Read data and split them by a hash of the examples' ids.

    Long texts are split before they are cut into windows, so that no text is on both sides.

    Args:
        held_out: about what share is held out, 0: nothing.
        context: cut longer texts into examples of at most so many tokens.

    Raises:
        AskedWrongly: a share or context that makes no sense.
        ValueError: data that cannot be read, or too few examples for two parts.
    """
    from probes.readers import read_examples
    from sae.judging.held_out import split_examples

    if not 0 <= held_out < 1:
        raise AskedWrongly(
            f"`--held-out` must be a share from 0 to below 1, got {held_out}. Take {HELD_OUT}."
        )
    examples = list(read_examples(data, subject.kind, limit, skip))
    if held_out:
        try:
            train, judged = split_examples(examples, held_out)
        except ValueError as error:
            raise ValueError(str(error).replace("`share`", "`--held-out`")) from error
    else:
        train, judged = examples, []
    facts: dict[str, Any] = {"name": str(data), "held_out": held_out}
    if context is not None:
        facts["context"] = context
    return Parts(
        str(data),
        in_windows(subject, train, context),
        in_windows(subject, judged, context),
        facts,
    )


def in_windows(
    subject: Subject, examples: Sequence[Example], context: int | None
) -> Sequence[Example]:
    """The examples, longer texts cut into several; as they are without a context."""
    from sae.activations.text_windows import text_windows

    if context is None or not examples:
        return examples
    try:
        return list(text_windows(examples, subject.tokenizer, context))
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def rows_of(
    subject: Subject,
    examples: Sequence[Example],
    sites: str | Sequence[str],
    *,
    roles: Sequence[str] | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> SubjectActivations:
    """Head outputs of some sites on some examples, as coders read them.

    Raises:
        AskedWrongly: a site or a role that does not exist; the sentence says what there is.
    """
    from probes.heads import select_sites
    from sae.activations import SubjectActivations
    from sae.activations.token_rows import check_roles

    towers = subject.towers  # a model that cannot be used is not a question asked wrongly
    try:
        select_sites(sites, towers)
        check_roles(roles)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error
    return SubjectActivations(
        subject, examples, sites=sites, roles=roles, batch_size=batch_size, seed=seed,
        about_data=facts,
    )  # fmt: skip
