"""Stand at every attention call of a subject: listeners see calls, edits change them.

One `Tap` per thread and model serves all open ``with`` blocks, so that edits come first and
listeners second whatever their order. Two back ends lie behind it: a pre-hook on the verified
output projection where only z is needed, and the mode where patterns are.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.alignment import GROWING_TOWERS, flat_positions, tokens_while_generating
from probes.attention_call import AttentionCall, Tile
from probes.edits.edit import Edit, EditPlace, EditReport
from probes.heads import Site
from probes.interception import AttentionMode, FollowedSoftmax, Surroundings
from probes.layout import Layout, SiteLayout
from probes.masks import AttentionMask
from probes.module_stack import ModuleStack
from probes.observation import autocast_dtype
from probes.raw_attention import RawAttention
from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

CallListener = Callable[[AttentionCall], None]
ZListener = Callable[[Site, Tensor, int], None]
"""Gets a site, ``z [batch query head value_width]`` after all edits, and the step."""

_MISMATCH = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_MISMATCH = 5e-2


class TapError(RuntimeError):
    """A capture that captured nothing, or one that could not prove itself."""


@dataclass(eq=False)
class Attached:
    """What one ``with`` block adds to the tap."""

    sites: frozenset[Site]
    on_call: CallListener | None = None
    on_z: ZListener | None = None
    edits: tuple[tuple[Edit, dict[Site, list[int]], EditReport], ...] = ()
    heard: set[Site] = field(default_factory=set)
    proven: set[Site] = field(default_factory=set)


@dataclass
class _Running:
    """The batch that the subject is running in this thread."""

    tokens: TokenMap | None
    examples: int | None
    generated: int
    first_forward: int


class Tap:
    """All listeners and edits of one thread on one model."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.attached: list[Attached] = []
        self.running: list[_Running] = []
        self._mode: AttentionMode | None = None
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
        self._forward_cache: dict[Any, Any] = {}
        self._cached_forward = -1

    # -- who is attached -----------------------------------------------------------------------

    def add(self, attached: Attached) -> None:
        self.attached.append(attached)
        self._configure()

    def remove(self, attached: Attached) -> None:
        self.attached.remove(attached)
        self._configure()

    def close(self) -> None:
        self.attached.clear()
        self._configure()

    def _configure(self) -> None:
        needs_mode = any(self._needs_mode(a) for a in self.attached)
        if self._stack is not None and (not self.attached or needs_mode != bool(self._mode)):
            self._stop()
        if self.attached and self._stack is None:
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
        self._stack = ModuleStack(self.model, {*self._by_path, *projections, *self._softmaxes})
        self._stack.__enter__()
        thread = threading.get_ident()
        for path in projections:
            sites = [site for site, where in self._hooked.items() if where == path]
            hook = self._projection_hook(path, sites, thread)
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(hook))
        if needs_mode:
            self._mode = AttentionMode(self._receive, self._surroundings, self._examples)
            self._mode.__enter__()

    def _stop(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = None
        self._parts.clear()
        self._forward_cache.clear()

    # -- where the model is --------------------------------------------------------------------

    @property
    def step(self) -> int:
        """0 for the prompt, n while the n-th generated token is fed back."""
        if not self.running or not self.running[-1].generated or self._stack is None:
            return 0
        return max(0, self._stack.forwards - self.running[-1].first_forward - 1)

    def begin(self, tokens: TokenMap | None, examples: int | None, generated: int) -> None:
        forwards = 0 if self._stack is None else self._stack.forwards
        if tokens is not None:
            tokens = tokens_while_generating(tokens, generated)
        self.running.append(_Running(tokens, examples, generated, forwards))
        self._forward_cache.clear()

    def end(self) -> None:
        self.running.pop()
        self._forward_cache.clear()

    def _examples(self) -> int | None:
        return self.running[-1].examples if self.running else None

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

    # -- the mode's back end -------------------------------------------------------------------

    def _receive(self, raw: RawAttention, note: FollowedSoftmax | None) -> Tensor | None:
        assert self._stack is not None
        if note is not None and note.number not in self._softmaxes[note.path]:
            return None  # a softmax beside the attention, such as a dynamic convolution's kernel
        inside = self._stack.next_inside()
        place = self._locate(inside)
        if place is None or not any(place.site in a.sites for a in self.attached):
            return None
        first_head = 0
        if place.rule == "heads":
            first_head = inside % place.calls * raw.heads
        elif inside == 0 or place.inside is not None:
            self._offsets[place.site] = 0
        call = self._call(place, raw)
        self._prove(call, raw)
        changed = self._edit(call, first_head)
        if place.rule == "heads":
            self._gather(place, raw, call)
        else:
            self._tell(call)
            self._offsets[place.site] += raw.mask.queries
        return call.z if changed else None

    def _call(self, place: SiteLayout, raw: RawAttention) -> AttentionCall:
        step, site = self.step, place.site
        batch, queries, keys = raw.z.shape[0], raw.mask.queries, raw.mask.keys
        offset = self._offsets.get(site, 0)
        query_index = self._positions(site.tower, batch, queries, offset, step, queries)
        key_tower = place.key_tower or site.tower
        if key_tower == site.tower and keys == queries and step == 0:
            key_index = query_index
        else:
            key_step = step if key_tower == site.tower else 0
            key_index = self._positions(key_tower, batch, keys, offset, key_step, queries)
        return AttentionCall(
            site=site,
            path=place.path,
            ordinal=place.occurrence,
            value=raw.value,
            z=raw.z,
            mask=self._shared_mask(raw.mask),
            query=raw.query,
            key=raw.key,
            scale=raw.scale,
            whole=raw.whole,
            query_index=query_index,
            key_index=key_index,
            key_tower=key_tower,
            step=step,
            roles=self._roles(site.tower, key_tower),
            compute_dtype=autocast_dtype(raw.z.device.type),
        )

    def _cache(self) -> dict[Any, Any]:
        assert self._stack is not None
        if self._cached_forward != self._stack.forwards:
            self._forward_cache.clear()
            self._cached_forward = self._stack.forwards
        return self._forward_cache

    def _positions(
        self, tower: str, batch: int, length: int, offset: int, step: int, queries: int
    ) -> Tensor | None:
        running = self.running[-1] if self.running else None
        if running is None or running.tokens is None or tower not in running.tokens:
            return None
        cache, key = self._cache(), (tower, batch, length, offset, step)
        if key not in cache:
            tokens, last = running.tokens[tower], None
            if running.generated and tower in GROWING_TOWERS and tokens.rows:
                last = int(tokens.lengths.max()) - running.generated - 1 + step
            cache[key] = flat_positions(tokens, batch, length, offset=offset, last=last)
        return cache[key]

    def _roles(self, tower: str, key_tower: str) -> Callable[[bool], Tensor] | None:
        tokens = self.running[-1].tokens if self.running else None
        if tokens is None or tower not in tokens or key_tower not in tokens:
            return None
        return lambda is_query: tokens[tower if is_query else key_tower].role

    def _shared_mask(self, mask: AttentionMask) -> AttentionMask:
        # Layers of one forward share one mask tensor; sharing our view keeps what it has learnt.
        key = (id(mask.tensor), mask.queries, mask.keys, mask.causal)
        return self._cache().setdefault(key, mask)

    def _prove(self, call: AttentionCall, raw: RawAttention) -> None:
        new = [a for a in self.attached if call.site in a.sites and call.site not in a.proven]
        if not new:
            return
        for attached in new:
            attached.proven.add(call.site)
        mismatch = call.spot_mismatch()
        limit = _MISMATCH.get(raw.z.dtype, _HALF_MISMATCH)
        if call.compute_dtype is not None:
            limit = _HALF_MISMATCH
        if not mismatch <= limit:
            what = "is not finite" if mismatch != mismatch else f"differs by {mismatch:.1e}"
            raise TapError(
                f"pattern @ value must equal the attention output of {call.site}, {what}. "
                "Check the model's weights for NaN or inf, or report this model."
            )

    def _edit(self, call: AttentionCall, first_head: int) -> bool:
        z_edits, affected = [], set()
        for edit, chosen, report in self._edits():
            heads = [h - first_head for h in chosen.get(call.site, ())]
            heads = [h for h in heads if 0 <= h < call.heads]
            if not heads:
                continue
            if edit.stage == "z":
                z_edits.append((edit, heads, report))
                continue
            target = call.score_edits if edit.stage == "scores" else call.pattern_edits
            target.append(_on_heads(edit, heads, report))
            affected.update(heads)
        if affected:
            new = call.weighted_values(counting=True).to(call.z.dtype)
            chosen_heads = sorted(affected)
            z = call.z.clone()
            z[:, chosen_heads] = new[:, chosen_heads]
            call.z = z
        for edit, heads, report in z_edits:
            place = EditPlace(call.site, heads, call.step, call)
            z = call.z.transpose(1, 2)
            call.z = _apply_z(edit, z, heads, place, report).transpose(1, 2)
        return bool(affected or z_edits)

    def _edits(self) -> Iterator[tuple[Edit, dict[Site, list[int]], EditReport]]:
        for attached in self.attached:
            yield from attached.edits

    def _gather(self, place: SiteLayout, raw: RawAttention, call: AttentionCall) -> None:
        parts = self._parts[place.site]
        whole = call.pattern() if raw.whole is None or call.pattern_edits else raw.whole
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
        for attached in self.attached:
            if call.site not in attached.sites:
                continue
            if attached.on_call is not None:
                attached.heard.add(call.site)
                with torch.no_grad():
                    attached.on_call(call)
            if attached.on_z is not None and call.site not in self._hooked:
                attached.heard.add(call.site)
                attached.on_z(call.site, call.z.transpose(1, 2), call.step)

    # -- the projection's back end ---------------------------------------------------------------

    def _projection_hook(self, path: str, sites: list[Site], thread: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if threading.get_ident() != thread or not args:
                return None
            assert self._stack is not None
            site = sites[(self._stack.times_called[path] - 1) % len(sites)]
            listening = [a for a in self.attached if a.on_z is not None and site in a.sites]
            edits = [] if self._mode is not None else [e for e in self._edits() if site in e[1]]
            if not listening and not edits:
                return None
            place = self.layout.site(site)
            x = args[0]
            z = x.reshape(x.shape[0] if x.ndim > 2 else 1, -1, place.heads, place.value_width)
            for edit, chosen, report in edits:
                where = EditPlace(site, chosen[site], self.step, None)
                z = _apply_z(edit, z, chosen[site], where, report)
            for attached in listening:
                attached.heard.add(site)
                assert attached.on_z is not None
                attached.on_z(site, z, self.step)
            return (z.reshape(x.shape), *args[1:]) if edits else None

        return hook


def _apply_z(
    edit: Edit, z: Tensor, heads: list[int], place: EditPlace, report: EditReport
) -> Tensor:
    old = z[:, :, heads]
    new = edit.apply(old, place).to(z.dtype)
    if new.shape != old.shape:
        raise ValueError(
            f"Edit {edit.label} must return z of shape {tuple(old.shape)} (batch, query, head, "
            f"head_width), got {tuple(new.shape)}."
        )
    report.fired += 1
    report.touched += int((new != old).any(-1).sum())
    result = z.clone()
    result[:, :, heads] = new
    return result


def _heads_of_one_call(site: SiteLayout) -> int:
    return site.heads // site.calls if site.rule == "heads" else site.heads


def _on_heads(edit: Edit, heads: list[int], report: EditReport) -> Callable[[Tile, Tensor], Tensor]:
    def apply(tile: Tile, values: Tensor) -> Tensor:
        place = EditPlace(tile.call.site, heads, tile.call.step, tile.call, tile)
        old = values[:, heads]
        new = edit.apply(old, place)
        if new.shape != old.shape:
            raise ValueError(
                f"Edit {edit.label} must return {edit.stage} of shape {tuple(old.shape)} (batch, "
                f"head, query, key), got {tuple(new.shape)}."
            )
        if tile.call.counting:
            report.fired += 1
            report.touched += int((new != old).any(-1).sum())
        result = values.clone()
        result[:, heads] = new
        return result

    return apply


_local = threading.local()


def tap_of(subject: Subject) -> Tap:
    """This thread's tap on the subject's model."""
    taps: dict[int, Tap] = _local.__dict__.setdefault("taps", {})
    tap = taps.get(id(subject.model))
    if tap is None or tap.model is not subject.model:
        tap = taps[id(subject.model)] = Tap(subject.model, subject.layout)
    return tap


@contextmanager
def attach(subject: Subject, attached: Attached) -> Iterator[Attached]:
    """Add listeners or edits for the length of a ``with`` block, in this thread only."""
    tap = tap_of(subject)
    tap.add(attached)
    try:
        yield attached
    finally:
        tap.remove(attached)
        _forget_if_idle(subject, tap)


@contextmanager
def announced(subject: Subject, batch: Batch | None, generated: int = 0) -> Iterator[None]:
    """Tell this thread's tap, if something is attached, which batch the model will run.

    Args:
        generated: how many tokens the model may generate.
    """
    tap = _local.__dict__.get("taps", {}).get(id(subject.model))
    if tap is None or batch is None:
        yield
        return
    tap.begin(batch.tokens, batch.size or None, generated)
    try:
        yield
    finally:
        tap.end()


def _forget_if_idle(subject: Subject, tap: Tap) -> None:
    if not tap.attached:
        _local.__dict__.get("taps", {}).pop(id(subject.model), None)


@contextmanager
def listen(
    subject: Subject,
    batch: Batch | None,
    listener: CallListener,
    sites: Iterable[Site] | None = None,
) -> Iterator[Attached]:
    """Hand every attention call to ``listener`` while the ``with`` block runs the model.

    Args:
        batch: what will be run, so that calls know their positions.
        sites: only these; all by default.

    Raises:
        TapError: at the end of the block, if not one call was seen.
    """
    chosen = frozenset(s.site for s in subject.layout.sites) if sites is None else frozenset(sites)
    if not chosen:
        raise TapError(no_attention_sentence(subject))
    with attach(subject, Attached(chosen, on_call=listener)) as attached, announced(subject, batch):
        yield attached
    if not attached.heard:
        raise TapError(
            f"The forward pass must reach at least one of {len(chosen)} attention layers of "
            f"{subject.name}, reached none. Run the model inside the `with` block, in this thread."
        )


def no_attention_sentence(subject: Subject) -> str:
    """Why a subject has nothing to capture."""
    refused = "; ".join(f"{r.path}: {r.reason}" for r in subject.layout.refusals[:3])
    return (
        f"{subject.name} has no softmax attention that can be captured"
        + (f" ({refused})" if refused else "")
        + ". Run `headscope inspect` on it to see what it is made of."
    )
