"""Run a model again with other head outputs, without what cannot have changed.

One forward is recorded. To change heads of layer 7 after that, layers 0 to 6 and the attention of
layer 7 need not run: their modules hand out what they returned in the recorded forward, and the
model's own code does the rest. The outputs are those of a whole forward with the same change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.heads import Site
from probes.layout import Layout
from probes.listening import attach
from probes.replaying.call_tree import Call, CallTree
from probes.replaying.dice import dice_on, were_thrown
from probes.replaying.player import Player
from probes.replaying.proof import gives_positions, knowledge_of, trial_batch
from probes.replaying.recorded import Changes, RecordedForward
from probes.replaying.z_change import ReplayError
from probes.tap import Attached, CallListener

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

__all__ = [
    "Changes",
    "RecordedForward",
    "ReplayError",
    "kept_positions",
    "logits_unread",
    "record",
]


def record(
    subject: Subject,
    batch: Batch,
    *,
    sites: Iterable[Site] | None = None,
    positions: Tensor | None = None,
    on_call: CallListener | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RecordedForward:
    """Run the intact model once on a batch and keep what restarts need.

    That is z of the layers, and what blocks and modules outside of blocks returned: little more
    than one ``[batch position model_width]`` per block.

    Args:
        sites: layers whose heads will be changed; all by default.
        positions: long ``[kept]``, ascending: the positions whose logits will be read. Models
            that can leave out the logits of others do; see `RecordedForward.positions`.
        on_call: gets every attention call of these layers while the intact model runs.
        settings: for the model's forward, in this and in every later run.
    """
    batch, settings = subject.on_device(batch), dict(settings or {})
    positions = kept_positions(subject, batch, positions)
    if positions is not None:
        settings["logits_to_keep"] = positions
    layout = subject.layout
    wanted = frozenset(site.site for site in layout.sites) if sites is None else frozenset(sites)
    return _recorded(subject, batch, wanted, positions, on_call, settings, trial=False)


def kept_positions(subject: Subject, batch: Batch, positions: Tensor | None) -> Tensor | None:
    """The positions as the model's ``logits_to_keep``; None where it gives all logits anyway.

    Found out once for each model, by comparing with all logits.
    """
    if positions is None:
        return None
    known = knowledge_of(subject)
    if known.keeps_positions is None:
        known.keeps_positions = gives_positions(subject, subject.on_device(batch))
    return positions.to(subject.device) if known.keeps_positions else None


def logits_unread(subject: Subject, batch: Batch) -> dict[str, Any]:
    """Settings for a forward whose logits nobody reads: those of one position, where that works.

    The logits of a batch can be larger than everything else of a forward. Ask before listeners are
    attached: once for each model it is run to find out.
    """
    first = torch.zeros(1, dtype=torch.long)
    return {} if kept_positions(subject, batch, first) is None else {"logits_to_keep": first}


def _recorded(
    subject: Subject,
    batch: Batch,
    wanted: frozenset[Site],
    positions: Tensor | None,
    on_call: CallListener | None,
    settings: dict[str, Any],
    *,
    trial: bool,
) -> RecordedForward:
    known = knowledge_of(subject)
    layout, made = known.layout, defaultdict[Site, list[Tensor]](list)
    while True:
        made.clear()
        tree = CallTree(known.outline, known.frail)
        with ExitStack() as stack:
            if on_call is not None:
                stack.enter_context(attach(subject, Attached(wanted, on_call=on_call)))
            unprojected = wanted - _projected(layout)
            if unprojected:
                keep = Attached(unprojected, on_z=lambda s, z, _: made[s].append(z.clone()))
                stack.enter_context(attach(subject, keep))
            stack.enter_context(subject.evaluating())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(tree)
            dice = dice_on(subject.device)
            output = subject.call(batch, **settings)
        changed = tree.changed_later() - known.frail
        if not changed:
            break
        known.frail |= changed
        on_call = None  # it has heard this batch
    calls = {site: found for site, found in tree.calls_of().items() if site in wanted}
    z = {}
    for site in (place.site for place in layout.sites):
        parts = [_by_head(call, layout.anatomy.shapes[site]) for call in calls.get(site, ())]
        parts = [part for part in parts if part is not None] or made[site]
        if parts and len({(part.shape[0], *part.shape[2:]) for part in parts}) == 1:
            z[site] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            calls.setdefault(site, tree.calls[:1])
    _let_go(tree, [call for site in z for call in calls[site]])

    def record_trial() -> RecordedForward | None:
        small = trial_batch(subject)
        if small is None:
            return None
        try:
            return _recorded(subject, small, frozenset(z), None, None, {}, trial=True)
        except Exception:  # our sample does not suit the model: it is tried on the user's batch
            return None

    player = Player(subject, batch, settings, tree, known, dice if were_thrown(dice) else None)
    again = None if trial else record_trial
    return RecordedForward(output, batch, z, positions, player, calls, again)


def _projected(layout: Layout) -> set[Site]:
    return {site for site, found in layout.anatomy.projections.items() if found.path}


def _by_head(call: Call, shape: tuple[int, int]) -> Tensor | None:
    """``[batch query head value_width]`` of what a projection read, as a tap gives it."""
    x = call.read
    return None if x is None else x.reshape(x.shape[0] if x.ndim > 2 else 1, -1, *shape)


def _let_go(tree: CallTree, calls: list[Call]) -> None:
    """Keep what ended before the last layer was projected, the layers' blocks, and towers."""
    last = max((call.start for call in calls), default=0)
    keep = {tree.block_of(call) for call in calls}
    keep |= {call for call in tree.calls if call.given is not None}
    tree.forget_after(last, keep)
    for call in tree.calls:
        if call not in calls:
            call.read = None
