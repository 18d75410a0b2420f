"""Apply edits to a subject for the length of a ``with`` block, and report what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from probes.edits.edit import Edit, EditReport
from probes.edits.function import edit_pattern, edit_scores, edit_z
from probes.edits.given import mean, replace
from probes.edits.knock_out import knock_out
from probes.edits.scale import scale, zero
from probes.heads import Head, Site, select_heads
from probes.layout import SiteLayout
from probes.listening import attach
from probes.tap import Attached, TapError

if TYPE_CHECKING:
    from probes.subject import Subject

BUILT_IN: dict[str, Callable[..., Edit]] = {
    "scale": scale,
    "zero": zero,
    "mean": mean,
    "replace": replace,
    "knock_out": knock_out,
    "edit_pattern": edit_pattern,
    "edit_scores": edit_scores,
    "edit_z": edit_z,
}


def available_edits() -> dict[str, Callable[..., Edit]]:
    """Edits by name: ours, and those that installed packages add (``headscope.edits``)."""
    found: dict[str, Callable[..., Edit]] = dict(BUILT_IN)
    for point in entry_points(group="headscope.edits"):
        if point.name not in found:
            found[point.name] = point.load()
    return found


@contextmanager
def edit(subject: Subject, *edits: Edit | str, **parameters: Any) -> Iterator[list[EditReport]]:
    """Change heads of a subject while the ``with`` block runs it, in this thread only.

    Args:
        edits: edits such as ``scale("language.L3H5", 2.0)``, or one name with its parameters.

    Yields:
        One report per edit: how often it fired and how many rows it touched.

    Raises:
        TapError: at the end of the block, if an edit never fired.
        ValueError: a head that the model does not have, or an unknown edit.
    """
    made = [_made(item, parameters) for item in edits]
    bound = tuple((item, *_bind(item, subject)) for item in made)
    sites = frozenset(site for _, heads, _ in bound for site in heads)
    reports = [report for _, _, report in bound]
    with attach(subject, Attached(sites, edits=bound)):
        yield reports
    for report in reports:
        if not report.fired:
            raise TapError(
                f"Edit {report.label} on {_named(report.heads)} must fire at least once, it never "
                "did. Run the model inside the `with` block, in this thread, on an input that "
                "reaches these heads."
            )


def _made(item: Edit | str, parameters: dict[str, Any]) -> Edit:
    if not isinstance(item, str):
        if parameters:
            raise ValueError(
                f"Parameters {', '.join(parameters)} must come with the name of an edit, got an "
                "edit object. Give them to the edit itself."
            )
        return item
    known = available_edits()
    if item not in known:
        raise ValueError(f"An edit must be one of {', '.join(sorted(known))}, got {item!r}.")
    return known[item](**parameters)


def _bind(item: Edit, subject: Subject) -> tuple[dict[Site, list[int]], EditReport]:
    heads = select_heads(item.heads, subject.towers)
    if item.stage == "scores":
        for site in {head.site for head in heads}:
            _refuse_mixed(item, subject.layout.site(site))
    chosen: dict[Site, list[int]] = {}
    for head in heads:
        chosen.setdefault(head.site, []).append(head.head)
    return chosen, EditReport(item.label, tuple(heads))


def _refuse_mixed(item: Edit, site: SiteLayout) -> None:
    if site.row_sums == "any":
        raise ValueError(
            f"{item.label} needs the scores of {site.site}, whose heads are mixed after the "
            "softmax, so no scores belong to one head. Edit the pattern or z there."
        )


def _named(heads: tuple[Head, ...]) -> str:
    shown = ", ".join(str(head) for head in heads[:3])
    return shown + (f" and {len(heads) - 3} more" if len(heads) > 3 else "")
