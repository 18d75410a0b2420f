"""The four passes of path patching: what a sender does to the inputs of later heads.

1. the other input, for the sender's output; 2. this input, for everything; 3. this input with the
sender's output exchanged and all other heads held at what they gave, where the receivers' queries,
keys and values are taken; 4. this input with those of one receiver alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from analysis.importance.patches.both_runs import after
from analysis.importance.patches.pairs import Pairs
from analysis.importance.patches.patched_positions import Positions, exchanged
from probes.attention_call import AttentionCall
from probes.feed_forward import feed_forward_outputs, outputs_held
from probes.heads import Head, Site
from probes.listening import listen
from probes.replay import record

if TYPE_CHECKING:
    from probes.subject import Subject

Via = Literal["query", "key", "value", "all"]
VIAS: tuple[Via, ...] = ("query", "key", "value", "all")


@dataclass
class Third:
    """What the third pass gave: its output, and z of the receivers by site and input."""

    output: Any = None
    z: dict[tuple[Site, str], Tensor] = field(default_factory=dict)


class Passes:
    """The runs of one batch of pairs; those of the first two passes are made at once.

    Args:
        pairs: their clean half is the input that is patched, their corrupted half the other.
        receivers: layers of the receivers.
        via: inputs of the receivers.
        freeze_mlps: hold the feed-forward modules too in the third pass.

    Raises:
        ValueError: a receiver's layer is not reached, or does not show its queries and keys; MLPs
            that are not known.
    """

    def __init__(
        self,
        subject: Subject,
        pairs: Pairs,
        receivers: Sequence[Site],
        via: Sequence[Via],
        freeze_mlps: bool = False,
    ) -> None:
        self.subject, self.pairs, self.receivers, self.via = subject, pairs, receivers, via
        self.order: list[Site] = []
        self._calls: dict[Site, AttentionCall] = {}
        where = pairs.positions
        self.base = record(subject, pairs.clean, positions=where, on_call=self._keep)
        self.other = record(subject, pairs.corrupted, positions=where)
        absent = [str(site) for site in receivers if site not in self._calls]
        if absent:
            raise ValueError(
                f"Receivers must be in layers that these inputs reach, {absent[0]} is not. Leave "
                "them out, or give inputs with images."
            )
        self.before = pairs.difference(self.base.output, self.base.positions)[0]
        self.gap = self.before - pairs.difference(self.other.output, self.other.positions)[0]
        self._frozen = feed_forward_outputs(subject, pairs.clean) if freeze_mlps else {}

    def later(self, sender: Site) -> list[Site]:
        """Layers of receivers that run after the sender's.

        Raises:
            ValueError: the sender's layer is not reached.
        """
        if sender not in self.order:
            raise ValueError(
                f"A sender must be in a layer that these inputs reach, {sender} is not. Choose one "
                f"of {', '.join(map(str, self.order))}."
            )
        behind = self.order[self.order.index(sender) + 1 :]
        return [site for site in behind if site in self.receivers]

    def third(self, sender: Head, at: Positions) -> Third:
        """The sender's output exchanged, all other heads held, MLPs recomputed unless frozen."""
        site, base = sender.site, self.base
        mask = at.mask(self.pairs, base, site)
        if isinstance(mask, str):
            raise ValueError(f"{sender} cannot send at these positions. {mask}")
        mine, theirs = base.z[site].clone(), self.other.z[site][:, :, sender.head]
        mine[:, :, sender.head] = exchanged(mine[:, :, sender.head], theirs, mask)
        held = {s: base.z[s] for s in self.order[self.order.index(site) :]} | {site: mine}
        changes = {s: (range(z.shape[2]), z) for s, z in held.items()}
        found = Third()

        def take(call: AttentionCall) -> None:
            for name in self.via:
                found.z[call.site, name] = self._received(call, name)

        later = self.later(site)
        listening = listen(self.subject, base.batch, take, later) if later else nullcontext()
        with listening, outputs_held(self.subject.model, self._frozen):
            found.output = base.run_whole(changes)
        return found

    def fourth(
        self, third: Third, heads: Mapping[Site, Sequence[int]], copies: int = 1
    ) -> Iterator[tuple[Head, str, Tensor]]:
        """Each receiver's new z alone in the base run: receiver, input, float64 ``[example]``."""
        for site, chosen in heads.items():
            plan = [(head, name) for head in chosen for name in self.via]
            variants = [([head], third.z[site, name][:, :, [head]]) for head, name in plan]
            read = after(self.pairs, self.base, site, variants, copies)
            for (head, name), patched in zip(plan, read, strict=True):
                yield Head(site.tower, site.layer, head), name, patched

    def _keep(self, call: AttentionCall) -> None:
        if call.site in self.receivers:
            _refuse_call(call, self.via, again=call.site in self._calls)
            self._calls[call.site] = _kept(call)
        if call.site not in self.order:
            self.order.append(call.site)

    def _received(self, call: AttentionCall, via: str) -> Tensor:
        """``[batch query head value_width]``: z of the receivers with this call's input of a kind.

        In closed form, as a difference from the same form on the base run, so that an input that
        the sender does not reach changes nothing at all, in half precision too.
        """
        old = self._calls[call.site]
        names = ("query", "key", "value", "whole") if via == "all" else (via,)
        new = replace(old, **{name: getattr(call, name) for name in names})
        change = (new.weighted_values() - old.weighted_values()).transpose(1, 2)
        z = self.base.z[call.site]
        return (z.float() + change).to(z.dtype)


def _kept(call: AttentionCall) -> AttentionCall:
    """A call that outlives its forward."""
    tensors = {name: getattr(call, name) for name in ("query", "key", "value", "z", "whole")}
    kept = {name: None if t is None else t.detach().clone() for name, t in tensors.items()}
    return replace(call, score_edits=[], pattern_edits=[], **kept)


def _refuse_call(call: AttentionCall, via: Sequence[str], again: bool) -> None:
    if again:
        raise ValueError(
            f"A receiver must be in a layer of one attention call, {call.site} makes several "
            "(windows or packed images). Choose receivers of another tower."
        )
    if call.query is None and {"query", "key"} & set(via):
        raise ValueError(
            f"Queries and keys of {call.site} must be known, but it writes out its own softmax. "
            "Load the model with `attn_implementation='sdpa'`, or choose `via` value or all."
        )
