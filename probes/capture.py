"""Keep the patterns and head outputs that were asked for, of a forward or of every new token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.alignment import tokens_while_generating
from probes.attention_call import AttentionCall
from probes.heads import Head, Site, select_heads, select_sites
from probes.listening import announced, attach, no_attention_sentence
from probes.tap import Attached, TapError
from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class Capture:
    """Patterns and head outputs of one run.

    Attributes:
        tokens: what each position is; with generated tokens their positions are included.
        output: what the model returned, or what it generated.
        steps: how many forwards were seen (1, or 1 + number of generated tokens fed back).
    """

    tokens: TokenMap
    output: Any = None
    steps: int = 1
    _patterns: dict[tuple[Site, int], list[_Kept]] = field(default_factory=dict, repr=False)
    _z: dict[tuple[Site, int], Tensor] = field(default_factory=dict, repr=False)
    _heads: dict[Site, list[int]] = field(default_factory=dict, repr=False)

    def pattern(self, where: str | Head | Site, step: int = 0) -> Tensor | list[Tensor]:
        """Float32 ``[batch query key]`` of a head, ``[batch head query key]`` of a layer.

        A list with one ``[query key]`` or ``[head query key]`` per image where images differ in
        size. ``step`` n is what the n-th generated token's forward saw: one query.

        Raises:
            KeyError: it was not captured.
        """
        site, heads = self._asked(where)
        if (site, step) not in self._patterns or site not in self._heads:
            raise KeyError(self._absent(str(where), step, "patterns", self._heads))
        kept = self._heads[site]
        missing = [h for h in heads or kept if h not in kept]
        if missing:
            raise KeyError(self._absent(str(where), step, "patterns", self._heads))
        chosen = [kept.index(h) for h in heads or kept]
        parts = [part.pattern[:, chosen] for part in self._patterns[site, step]]
        parts = [part[:, 0] for part in parts] if isinstance(where, Head) or heads else parts
        return _joined(
            parts, [part.starts for part in self._patterns[site, step]], self.tokens, site
        )

    def z(self, where: str | Head | Site, step: int = 0) -> Tensor:
        """``[batch query head head_width]`` of a layer (or without ``head`` of a head).

        Before the output projection, after all edits, in the model's dtype.

        Raises:
            KeyError: it was not captured.
        """
        site, heads = self._asked(where)
        if (site, step) not in self._z:
            known = {site for site, _ in self._z}
            raise KeyError(self._absent(str(where), step, "z", known))
        z = self._z[site, step]
        return z[:, :, heads[0]] if heads else z

    def _asked(self, where: str | Head | Site) -> tuple[Site, list[int]]:
        if isinstance(where, Head):
            return where.site, [where.head]
        if isinstance(where, Site):
            return where, []
        text = where if "." in where else self._with_tower(where)
        if "H" in text.rsplit(".", 1)[-1]:
            head = Head.parse(text)
            return head.site, [head.head]
        tower, _, layer = text.rpartition(".L")
        if not layer.isdigit():
            raise KeyError(f"A layer must be written like 'language.L3', got {where!r}.")
        return Site(tower, int(layer)), []

    def _with_tower(self, text: str) -> str:
        towers = {site.tower for site in self._heads} | {site.tower for site, _ in self._z}
        return f"{next(iter(towers))}.{text}" if len(towers) == 1 else text

    def _absent(self, asked: str, step: int, what: str, known: Iterable[Site]) -> str:
        have = ", ".join(str(site) for site in sorted(known)) or "nothing"
        return (
            f"{asked} at step {step} must have been captured, got {what} of {have} in "
            f"{self.steps} steps. Name it in `headscope.capture(..., {what}=[...])`."
        )


@dataclass
class _Kept:
    pattern: Tensor
    starts: int | None
    """Flat position of the first query where the call is one of several, else None."""


def capture(
    subject: Subject,
    batch: Batch,
    patterns: str | Head | Site | Iterable[str | Head | Site] = (),
    z: str | Head | Site | Iterable[str | Head | Site] = (),
    generate: int = 0,
    **settings: Any,
) -> Capture:
    """Run a subject once and keep the patterns and head outputs that are named.

    Args:
        patterns, z: selections such as ``["language.L3H5", "vision.*"]``.
        generate: number of new tokens; every step's patterns and z are kept.
        settings: for the model's forward, or for ``generate``.

    Raises:
        ValueError: a head that the model does not have.
        TapError: a layer that was asked for was not reached.
    """
    kept: dict[tuple[Site, int], list[_Kept]] = defaultdict(list)
    outputs: dict[tuple[Site, int], list[Tensor]] = defaultdict(list)
    if not subject.layout.towers:
        raise TapError(no_attention_sentence(subject))
    heads: dict[Site, list[int]] = defaultdict(list)
    for head in select_heads(patterns, subject.towers) if patterns else ():
        heads[head.site].append(head.head)
    sites = select_sites(z, subject.towers) if z else []

    def on_call(call: AttentionCall) -> None:
        first = None
        if call.query_index is not None and call.batch == 1:
            first = int(call.query_index[0, 0])
        kept[call.site, call.step].append(_Kept(call.pattern(heads[call.site]), first))

    def on_z(site: Site, value: Tensor, step: int) -> None:
        outputs[site, step].append(value.detach().clone())

    watchers = []
    if heads:
        watchers.append(Attached(frozenset(heads), on_call=on_call))
    if sites:
        watchers.append(Attached(frozenset(sites), on_z=on_z))
    if not watchers:
        raise ValueError("Name at least one head in `patterns` or one layer in `z`.")
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(attach(subject, watcher))
        if generate:
            output = subject.generate(batch, max_new_tokens=generate, **settings)
        else:
            with announced(subject, batch):
                output = subject.forward(batch, **settings)
    _refuse_silence(subject, watchers)
    steps = 1 + max((step for _, step in [*kept, *outputs]), default=0)
    tokens = tokens_while_generating(batch.tokens, generate)
    together = {place: _packed(parts) for place, parts in outputs.items()}
    return Capture(tokens, output, steps, dict(kept), together, dict(heads))


def _refuse_silence(subject: Subject, watchers: list[Attached]) -> None:
    for watcher in watchers:
        silent = sorted(watcher.sites - watcher.heard)
        if silent:
            names = ", ".join(str(site) for site in silent[:4])
            raise TapError(
                f"Every layer asked for must be reached by this input, {names} "
                f"{'was' if len(silent) == 1 else 'were'} not. Add what reaches it (an image for "
                f"a vision tower), or ask `headscope inspect {subject.name}`."
            )


def _packed(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _joined(
    parts: list[Tensor], starts: list[int | None], tokens: TokenMap, site: Site
) -> Tensor | list[Tensor]:
    """One tensor; a list, one per row, if several calls are whole rows; else block diagonal."""
    if len(parts) == 1:
        return parts[0]
    rows = tokens[site.tower].starts.tolist() if site.tower in tokens else []
    ends = [
        None if s is None else s + part.shape[-2] for s, part in zip(starts, parts, strict=True)
    ]
    if rows and starts == rows[:-1] and ends == rows[1:]:
        return [part[0] for part in parts]
    if not rows or any(start is None for start in starts):
        return [part[0] if part.shape[0] == 1 else part for part in parts]
    blocks = []
    for first, last in pairwise(rows):
        inside = [
            (start - first, part[0])
            for start, part in zip(starts, parts, strict=True)
            if start is not None and first <= start < last
        ]
        whole = parts[0].new_zeros(*parts[0].shape[1:-2], last - first, last - first)
        for offset, block in inside:
            stop = offset + block.shape[-1]
            whole[..., offset:stop, offset:stop] = block
        blocks.append(whole)
    return blocks[0][None] if len(blocks) == 1 else blocks
