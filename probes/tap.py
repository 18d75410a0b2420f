"""Stand at every attention call of a subject: listeners see calls, edits change them.

One `Tap` per thread and model serves all open ``with`` blocks, so that edits come first and
listeners second whatever their order. Two back ends lie behind it: a pre-hook on the verified
output projection where only z is needed, and the mode where patterns are.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.edits.at_call import BoundEdit, edit_call, edit_hooked_z
from probes.heads import Site
from probes.interception import AttentionMode, FollowedSoftmax, Surroundings
from probes.layout import Layout, SiteLayout
from probes.module_stack import ModuleStack
from probes.observation import autocast_dtype
from probes.raw_attention import RawAttention
from probes.residual_stream import ResidualHooks, ResidualListener
from probes.whereabouts import Whereabouts

if TYPE_CHECKING:
    from probes.edits.matched_random import MatchedRandom
    from probes.inputs import Batch

CallListener = Callable[[AttentionCall], None]
ZListener = Callable[[Site, Tensor, int], None]
"""Gets a site, ``z [batch query head value_width]`` after all edits, and the step."""

_MISMATCH = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_MISMATCH = 5e-2


class TapError(RuntimeError):
    """A capture that captured nothing, or one that could not prove itself."""


@dataclass(eq=False)
class Attached:
    """What one ``with`` block adds to the tap.

    Attributes:
        on_residual: gets the residual stream as it enters the block of a site.
        on_block_output: gets it as it leaves.
        control: put in the place of these edits, with changes of the same size.
        before: called with every batch that is announced, before its first forward, and with the
            number of tokens that may be generated. Only plain edits act meanwhile.
        logits: makes a processor of next-token logits, for generation.
        paused: whether it sees and does nothing for now.
        paused_with: the listeners of the same method.
    """

    sites: frozenset[Site]
    on_call: CallListener | None = None
    on_z: ZListener | None = None
    on_residual: ResidualListener | None = None
    on_block_output: ResidualListener | None = None
    edits: tuple[BoundEdit, ...] = ()
    control: MatchedRandom | None = None
    before: Callable[[Batch, int], None] | None = None
    logits: Callable[[Batch], Any] | None = None
    paused: bool = False
    paused_with: tuple[Attached, ...] = ()
    heard: set[Site] = field(default_factory=set)
    proven: set[Site] = field(default_factory=set)

    @property
    def only_edits(self) -> bool:
        """Whether it changes heads by nothing but what it finds in each forward."""
        hears = self.on_call or self.on_z or self.on_residual or self.on_block_output
        return not (hears or self.before or self.logits or self.paused_with)

    @property
    def watches_residual(self) -> bool:
        return self.on_residual is not None or self.on_block_output is not None


class Tap:
    """All listeners and edits of one thread on one model."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.attached: list[Attached] = []
        self.whereabouts = Whereabouts()
        self._mode: AttentionMode | None = None
        self._residual: ResidualHooks | None = None
        self._blocks: frozenset[str] = frozenset()
        self._stack: ModuleStack | None = None
        self._handles: list[Any] = []
        self._hooked = {
            site: found.path for site, found in layout.anatomy.projections.items() if found.path
        }
        self._by_path: dict[str, list[SiteLayout]] = defaultdict(list)
        for site in layout.sites:
            self._by_path[site.path].append(site)
        self._softmaxes: dict[str, set[int]] = defaultdict(set)
        for site in layout.sites:
            if site.source == "softmax":
                self._softmaxes[site.softmax_path] |= site.softmax_numbers
        self._parts: dict[Site, list[tuple[RawAttention, Tensor]]] = defaultdict(list)
        self._offsets: dict[Site, int] = {}

    def add(self, attached: Attached) -> None:
        self.attached.append(attached)
        self._configure()

    def remove(self, attached: Attached) -> None:
        self.attached.remove(attached)
        self._configure()

    def close(self) -> None:
        self.attached.clear()
        self._configure()

    @property
    def acting(self) -> list[Attached]:
        """What is attached and not paused."""
        return [attached for attached in self.attached if not attached.paused]

    def _configure(self) -> None:
        needs_mode = any(self._needs_mode(a) for a in self.attached)
        blocks = frozenset(
            self.layout.anatomy.blocks[site].path
            for attached in self.attached
            if attached.watches_residual
            for site in attached.sites
        )
        changed = needs_mode != bool(self._mode) or blocks != self._blocks
        if self._stack is not None and (not self.attached or changed):
            self._stop()
        if self.attached and self._stack is None:
            self._blocks = blocks
            self._start(needs_mode)

    def _needs_mode(self, attached: Attached) -> bool:
        if attached.on_call is not None:
            return True
        if any(edit.stage != "z" for edit, _, _ in attached.edits):
            return True
        sites = {site for _, heads, _ in attached.edits for site in heads}
        sites |= attached.sites if attached.on_z is not None else set()
        return any(site not in self._hooked for site in sites)

    def _start(self, needs_mode: bool) -> None:
        projections = set(self._hooked.values())
        followed = {*self._by_path, *projections, *self._softmaxes, *self._blocks}
        self._stack = ModuleStack(self.model, followed)
        self._stack.__enter__()
        self.whereabouts.follow(self._stack)
        thread = threading.get_ident()
        for path in projections:
            sites = [site for site, where in self._hooked.items() if where == path]
            hook = self._projection_hook(path, sites, thread)
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(hook))
        if self._blocks:
            self._residual = ResidualHooks(self.model, self.layout, self._blocks)
            self._residual.start(self._stack, lambda: self.acting, lambda: self.whereabouts.step)
        if needs_mode:
            self._mode = AttentionMode(
                self._receive, self._surroundings, lambda: self.whereabouts.examples
            )
            self._mode.__enter__()

    def _stop(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._residual is not None:
            self._residual.stop()
            self._residual = None
        self._blocks = frozenset()
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = None
            self.whereabouts.follow(None)
        self._parts.clear()

    def _surroundings(self) -> Surroundings:
        assert self._stack is not None
        path = self._stack.top
        sites = self._by_path.get(path, [])
        heads = _heads_of_one_call(sites[0]) if sites else None
        return Surroundings(path, path in self._softmaxes, heads, self._stack.run)

    def _locate(self, inside: int) -> SiteLayout | None:
        assert self._stack is not None
        path = self._stack.top
        sites = self._by_path.get(path, [])
        if len(sites) > 1 and sites[0].inside is None:
            occurrence = self._stack.times_called[path] - 1
            sites = [site for site in sites if site.occurrence == occurrence % len(sites)]
        elif sites and sites[0].inside is not None:
            sites = [site for site in sites if site.inside == inside]
        return sites[0] if sites else None

    def _receive(self, raw: RawAttention, note: FollowedSoftmax | None) -> Tensor | None:
        assert self._stack is not None
        if note is not None and note.number not in self._softmaxes[note.path]:
            return None  # a softmax beside the attention, such as a dynamic convolution's kernel
        inside = self._stack.next_inside()
        place = self._locate(inside)
        if place is None or not any(
            place.site in a.sites
            for a in self.acting
            if a.on_call is not None or a.on_z is not None or a.edits
        ):
            return None
        first_head = 0
        if place.rule == "heads":
            first_head = inside % place.calls * raw.heads
            if inside % place.calls == 0:
                self._parts[place.site].clear()  # of a forward that failed halfway
        elif inside == 0 or place.inside is not None:
            self._offsets[place.site] = 0
        call = self._call(place, raw)
        self._prove(call, raw)
        changed = self._edit(call, first_head)
        z = call.z
        if place.rule == "heads":
            self._gather(place, raw, call)
        else:
            self._tell(call)
            self._offsets[place.site] += raw.mask.queries
        return z if changed else None

    def _call(self, place: SiteLayout, raw: RawAttention) -> AttentionCall:
        here, site = self.whereabouts, place.site
        batch, queries, keys = raw.z.shape[0], raw.mask.queries, raw.mask.keys
        where = self._offsets.get(site, 0), place.rule == "blocks", raw.z.device
        query_index = here.positions(site.tower, batch, queries, *where)
        key_tower = place.key_tower or site.tower
        if key_tower == site.tower and keys == queries and here.step == 0:
            key_index = query_index
        else:
            key_index = here.positions(key_tower, batch, keys, *where)
        return AttentionCall(
            site=site,
            path=place.path,
            ordinal=place.occurrence,
            value=raw.value,
            z=raw.z,
            mask=here.shared_mask(raw.mask),
            query=raw.query,
            key=raw.key,
            scale=raw.scale,
            whole=raw.whole,
            query_index=query_index,
            key_index=key_index,
            key_tower=key_tower,
            step=here.step,
            moment=here.moment,
            compute_dtype=autocast_dtype(raw.z.device.type),
        )

    def _prove(self, call: AttentionCall, raw: RawAttention) -> None:
        new = [a for a in self.acting if call.site in a.sites and call.site not in a.proven]
        if not new:
            return
        mismatch = call.spot_mismatch()
        if mismatch is None:
            return
        limit = _MISMATCH.get(raw.z.dtype, _HALF_MISMATCH)
        if call.compute_dtype is not None:
            limit = _HALF_MISMATCH
        if not mismatch <= limit:
            what = "is not finite" if mismatch != mismatch else f"differs by {mismatch:.1e}"
            raise TapError(
                f"pattern @ value must equal the attention output of {call.site}, {what}. "
                "Check the model's weights for NaN or inf, or report this model."
            )
        for attached in new:
            attached.proven.add(call.site)

    def _edit(self, call: AttentionCall, first_head: int) -> bool:
        acting = self.acting
        plain = [edit for a in acting if a.control is None for edit in a.edits]
        changed = edit_call(call, plain, first_head)
        for attached in acting:
            if attached.control is not None:
                changed |= attached.control.at_call(call, attached.edits, first_head, changed)
        return changed

    def _gather(self, place: SiteLayout, raw: RawAttention, call: AttentionCall) -> None:
        parts = self._parts[place.site]
        edited = call.score_edits or call.pattern_edits
        whole = call.pattern() if raw.whole is None or edited else raw.whole
        parts.append((raw, call.z))
        raw.whole = whole
        if len(parts) < place.calls:
            return
        call.value = torch.cat([part.value for part, _ in parts], dim=1)
        call.whole = torch.cat([part.whole for part, _ in parts if part.whole is not None], dim=1)
        call.z = torch.cat([z for _, z in parts], dim=1)
        call.query = call.key = None
        call.score_edits, call.pattern_edits = [], []
        parts.clear()
        self._tell(call)

    def _tell(self, call: AttentionCall) -> None:
        for attached in self.acting:
            if call.site not in attached.sites:
                continue
            if attached.on_call is not None:
                attached.heard.add(call.site)
                with torch.no_grad():
                    attached.on_call(call)
            if attached.on_z is not None and call.site not in self._hooked:
                attached.heard.add(call.site)
                attached.on_z(call.site, call.z.transpose(1, 2), call.step)

    def _projection_hook(self, path: str, sites: list[Site], thread: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if threading.get_ident() != thread or not args:
                return None
            assert self._stack is not None
            site = sites[(self._stack.times_called[path] - 1) % len(sites)]
            acting = self.acting
            listening = [a for a in acting if a.on_z is not None and site in a.sites]
            editing = [a for a in acting if any(site in heads for _, heads, _ in a.edits)]
            if self._mode is not None:
                editing = []
            if not listening and not editing:
                return None
            place = self.layout.site(site)
            x = args[0]
            z = x.reshape(x.shape[0] if x.ndim > 2 else 1, -1, place.heads, place.value_width)
            if editing:
                z = self._edited(site, z, editing)
            for attached in listening:
                attached.heard.add(site)
                assert attached.on_z is not None
                attached.on_z(site, z, self.whereabouts.step)
            return (z.reshape(x.shape), *args[1:]) if editing else None

        return hook

    def _edited(self, site: Site, z: Tensor, editing: list[Attached]) -> Tensor:
        here = self.whereabouts
        index = here.positions(site.tower, z.shape[0], z.shape[1], 0, False, z.device)
        plain = [edit for a in editing if a.control is None for edit in a.edits]
        z = edit_hooked_z(site, z, plain, here.moment, index)
        for attached in editing:
            if attached.control is not None:
                z = attached.control.at_projection(site, z, attached.edits, here.moment, index)
        return z


def _heads_of_one_call(site: SiteLayout) -> int:
    return site.heads // site.calls if site.rule == "heads" else site.heads
