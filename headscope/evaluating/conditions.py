"""Under what a model is asked: plainly, with an edit, or with the edit's random-head control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from headscope.plan import AskedWrongly
from probes.heads import Head, Site

if TYPE_CHECKING:
    from probes.edits.edit import Edit, EditReport
    from probes.edits.method import Method
    from probes.subject import Subject

    Edits = Mapping[str, Edit | Method | str] | Sequence[Edit | Method | str]

BASELINE = "baseline"
RANDOM_HEADS = "random heads"


@dataclass(frozen=True)
class Condition:
    """One way of running the model.

    Attributes:
        edit: how tables call it: ``baseline``, or the edit's text or label. A control bears the
            name of its edit.
        seed: of a control's draw of heads; None for others.
        made: the edit, None for the baseline.
    """

    edit: str
    kind: Literal["baseline", "edit", "control"] = "edit"
    seed: int | None = None
    made: Any = None

    @property
    def name(self) -> str:
        """Unique in an evaluation.

        >>> Condition("vhr", "control", 3).name
        'vhr, random heads 3'
        """
        return self.edit if self.kind != "control" else f"{self.edit}, {RANDOM_HEADS} {self.seed}"

    def record(self) -> dict[str, Any]:
        """What a plan says of it."""
        return {
            "edit": self.edit,
            "kind": self.kind,
            "seed": self.seed,
            "label": getattr(self.made, "label", ""),
            "parameters": _parameters(self.made),
        }

    def of_generation_alone(self, subject: Subject) -> bool:
        """Whether it acts while generating and in no other forward, so that none can be probed."""
        from probes.edits.method import Method

        return isinstance(self.made, Method) and self.made.on(subject).logits is not None


def conditions_of(edits: Edits, controls: int, seed: int) -> list[Condition]:
    """The baseline, then every edit, each followed by its controls.

    Args:
        edits: edits, methods or texts as `probes.edits.parse` reads them, by name or in a row.
        controls: random-head controls for each edit, with the seeds ``seed, seed + 1, ...``.

    Raises:
        AskedWrongly: a text is no edit, or two edits share a name.
    """
    from probes.edits.matched_random import matched_random

    if controls < 0:
        raise AskedWrongly(f"`--control` must be at least 0, got {controls}.")
    named = edits.items() if isinstance(edits, Mapping) else [(_name(item), item) for item in edits]
    found = [Condition(BASELINE, "baseline")]
    for name, item in named:
        if any(condition.edit == name for condition in found):
            raise AskedWrongly(f"Each edit must have a name of its own, got {name!r} twice.")
        made = made_edit(item)
        found.append(Condition(name, "edit", None, made))
        found += [
            Condition(name, "control", seed + turn, matched_random(made, seed + turn))
            for turn in range(controls)
        ]
    return found


def made_edit(item: Edit | Method | str) -> Edit | Method:
    """The edit itself, or the one that a text describes.

    Raises:
        AskedWrongly: the text is no edit.
    """
    from probes.edits.parse import EditTextError, parse_edit

    try:
        return parse_edit(item) if isinstance(item, str) else item
    except EditTextError as error:
        raise AskedWrongly(str(error)) from error


@contextmanager
def under(subject: Subject, condition: Condition) -> Iterator[EditReport | None]:
    """Run the model under a condition; gives the edit's report."""
    from probes.edits.apply import edit

    if condition.made is None:
        yield None
        return
    with edit(subject, condition.made) as reports:
        yield reports[0]


def refuse_inapplicable(subject: Subject, condition: Condition) -> None:
    """Nothing, if an edit can be used on a subject.

    Raises:
        AskedWrongly: heads that the model does not have, or a method that does not apply to it.
    """
    from probes.edits.method import Method
    from probes.heads import select_heads

    made = condition.made
    try:
        parts = made.on(subject).edits if isinstance(made, Method) else (made,)
        for part in parts:
            select_heads(part.heads, subject.towers)
    except ValueError as error:
        raise AskedWrongly(f"{condition.edit}: {error}") from error


def without_impossible_controls(
    subject: Subject, conditions: Sequence[Condition]
) -> tuple[list[Condition], list[str]]:
    """The conditions without controls that cannot be had, and a sentence for each edit."""
    kept: list[Condition] = []
    notes: dict[str, None] = {}
    for condition in conditions:
        if condition.kind == "control":
            try:
                condition.made.on(subject)
            except ValueError as error:
                notes[f"{condition.edit} has no random-head control: {error}"] = None
                continue
        kept.append(condition)
    return kept, list(notes)


def _name(item: Edit | Method | str) -> str:
    return item.strip() if isinstance(item, str) else item.label


def _parameters(made: Any) -> dict[str, Any]:
    """The fields of an edit that can be written down; tensors and functions cannot."""
    if not is_dataclass(made):
        return {}
    found: dict[str, Any] = {}
    for item in fields(made):
        value = getattr(made, item.name)
        if isinstance(value, (Head, Site)):
            found[item.name] = str(value)
        elif is_dataclass(value):
            found[item.name] = _parameters(value)
        elif isinstance(value, (str, int, float, bool, type(None))):
            found[item.name] = value
        elif isinstance(value, (list, tuple)):
            found[item.name] = [str(one) for one in value]
    return found
