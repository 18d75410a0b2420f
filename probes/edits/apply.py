"""Apply edits to a subject for the length of a ``with`` block, and report what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from probes.edits.at_call import BoundEdit
from probes.edits.edit import Edit, EditReport
from probes.edits.method import Method, Prepared
from probes.heads import Head, Site, select_heads
from probes.layout import SiteLayout
from probes.listening import attach
from probes.tap import Attached, TapError

if TYPE_CHECKING:
    from probes.subject import Subject

GROUP = "headscope.edits"
BUILT_IN = {
    "scale": "probes.edits.scale:scale",
    "zero": "probes.edits.scale:zero",
    "mean": "probes.edits.given:mean",
    "replace": "probes.edits.given:replace",
    "knock_out": "probes.edits.knock_out:knock_out",
    "scale_attention": "probes.edits.scale_attention:scale_attention",
    "edit_pattern": "probes.edits.function:edit_pattern",
    "edit_scores": "probes.edits.function:edit_scores",
    "edit_z": "probes.edits.function:edit_z",
    "matched_random": "probes.edits.matched_random:matched_random",
    "var": "analysis.vision.methods.var:var",
    "act": "analysis.vision.methods.act:act",
    "vhr": "analysis.vision.methods.vhr:vhr",
    "sink_removal": "analysis.vision.methods.sink_removal:sink_removal",
    "paint": "analysis.vision.methods.paint:paint",
    "modulation": "analysis.vision.methods.modulation:modulation",
    "gift": "analysis.vision.methods.gift:gift",
    "prune_tokens": "analysis.vision.methods.pruning:prune_tokens",
    "agla": "analysis.vision.methods.agla:agla",
    "ablate_feature": "sae.reading.interventions:ablate_feature",
    "scale_feature": "sae.reading.interventions:scale_feature",
    "set_feature": "sae.reading.interventions:set_feature",
    "steer_feature": "sae.reading.interventions:steer_feature",
    "steer": "sae.reading.steering:steer",
    "splice": "sae.splice:splice",
}
"""Where the factory of each of our edits lives: what other packages bring is loaded by name."""


def available_edits() -> dict[str, Callable[..., Edit | Method]]:
    """Factories by name: ours, and those that installed packages add (``headscope.edits``)."""
    found = {name: factory_of(name) for name in BUILT_IN}
    for point in entry_points(group=GROUP):
        if point.name not in found:
            found[point.name] = point.load()
    return found


def factory_of(name: str) -> Callable[..., Edit | Method]:
    """What makes the edit of this name.

    Raises:
        ValueError: there is none; the sentence names those that there are.
    """
    if name in BUILT_IN:
        module, _, factory = BUILT_IN[name].partition(":")
        return getattr(import_module(module), factory)
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    others = {point.name for point in entry_points(group=GROUP)}
    known = ", ".join(sorted({*BUILT_IN, *others}))
    raise ValueError(f"An edit must be one of {known}, got {name!r}.")


@contextmanager
def edit(
    subject: Subject, *edits: Edit | Method | str, **parameters: Any
) -> Iterator[list[EditReport]]:
    """Change heads of a subject while the ``with`` block runs it, in this thread only.

    Args:
        edits: edits such as ``scale("language.L3H5", 2.0)``, methods such as ``vhr(alpha=2)``, or
            one name with its parameters.

    Yields:
        One report per edit: how often it fired and how many rows it touched.

    Raises:
        TapError: at the end of the block, if an edit never fired.
        ValueError: a head that the model does not have, an unknown edit, or a method that does
            not apply to this model.
    """
    reports = []
    with ExitStack() as stack:
        for item in edits:
            attached, report = _ready(_made(item, parameters), subject)
            reports.append(report)
            for part in (attached, *attached.paused_with):
                stack.enter_context(attach(subject, part))
        yield reports
    for report in reports:
        if not report.fired:
            raise TapError(
                f"Edit {report.label} on {_named(report.heads)} must fire at least once, it never "
                "did. Run the model inside the `with` block, in this thread, on an input that "
                "reaches these heads."
            )


def _made(item: Edit | Method | str, parameters: dict[str, Any]) -> Edit | Method:
    if not isinstance(item, str):
        if parameters:
            raise ValueError(
                f"Parameters {', '.join(parameters)} must come with the name of an edit, got an "
                "edit object. Give them to the edit itself."
            )
        return item
    return factory_of(item)(**parameters)


def _ready(item: Edit | Method, subject: Subject) -> tuple[Attached, EditReport]:
    """What is attached for an edit or method, and the one report that all its parts write to."""
    prepared = item.on(subject) if isinstance(item, Method) else Prepared(edits=(item,))
    chosen = [_chosen(edit, subject) for edit in prepared.edits]
    heads = tuple(dict.fromkeys(head for heads in chosen for head in heads))
    report = EditReport(item.label, heads)
    own = report
    if prepared.control is not None:
        _refuse_head_by_head(item.label, heads, subject)
        report, own = prepared.control.report, EditReport(item.label, heads)
        report.heads = heads
    bound: list[BoundEdit] = [
        (edit, _by_site(heads), own) for edit, heads in zip(prepared.edits, chosen, strict=True)
    ]
    made = prepared.logits
    logits = None if made is None else lambda batch: made(batch, report)
    attached = Attached(
        frozenset(head.site for head in heads),
        edits=tuple(bound),
        control=prepared.control,
        before=prepared.before,
        logits=logits,
        paused_with=prepared.listeners,
    )
    return attached, report


def _chosen(item: Edit, subject: Subject) -> list[Head]:
    heads = select_heads(item.heads, subject.towers)
    if item.stage == "scores":
        for site in {head.site for head in heads}:
            _refuse_mixed(item, subject.layout.site(site))
    return heads


def _by_site(heads: list[Head]) -> dict[Site, list[int]]:
    chosen: dict[Site, list[int]] = {}
    for head in heads:
        chosen.setdefault(head.site, []).append(head.head)
    return chosen


def _refuse_mixed(item: Edit, site: SiteLayout) -> None:
    if site.row_sums == "any":
        raise ValueError(
            f"{item.label} needs the scores of {site.site}, whose heads are mixed after the "
            "softmax, so no scores belong to one head. Edit the pattern or z there."
        )


def _refuse_head_by_head(label: str, heads: tuple[Head, ...], subject: Subject) -> None:
    for site in dict.fromkeys(head.site for head in heads):
        if subject.layout.site(site).rule == "heads":
            raise ValueError(
                f"{label} draws heads of one attention call, and {site} makes several. "
                "Leave the layer out of the edit."
            )


def _named(heads: tuple[Head, ...]) -> str:
    shown = ", ".join(str(head) for head in heads[:3])
    return shown + (f" and {len(heads) - 3} more" if len(heads) > 3 else "")
