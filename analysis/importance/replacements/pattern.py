"""Another pattern with the head's own values: flat, or without some keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.replacements.replacement import Plain
from probes.edits.at_call import edited_z
from probes.edits.knock_out import knock_out
from probes.heads import Site
from probes.listening import listen
from probes.replay import logits_unread
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.replay import RecordedForward
    from probes.subject import Subject


_PAD = ROLES.index("pad")


class Uniform(Plain):
    """Equal weight on every key that a query may read; the values are kept."""

    joint = False
    listens = True
    name = "uniform"

    def __init__(self) -> None:
        self._z: dict[Site, list[Tensor]] = {}

    def start(self, subject: Subject, batch: Batch) -> None:
        self._z.clear()

    def on_call(self, call: AttentionCall) -> None:
        self._z.setdefault(call.site, []).append(self._flat(call))

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        return _joined(self._z[site]).to(recorded.z[site].dtype)

    def _flat(self, call: AttentionCall) -> Tensor:
        value, parts = call.value.float(), []
        group = call.heads // call.kv_heads
        rows = max(1, (1 << 22) // max(call.batch * call.keys * call.kv_heads, 1))
        for start in range(0, call.queries, rows):
            block = slice(start, min(start + rows, call.queries))
            allowed = call.allowed(slice(None), block, call.keys).float()
            weight = allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
            if weight.shape[1] == call.heads and group > 1:
                parts.append(torch.matmul(weight, value.repeat_interleave(group, 1)))
            else:
                flat = torch.matmul(weight, value)
                parts.append(flat.repeat_interleave(group, 1) if group > 1 else flat)
        return torch.cat(parts, dim=2).transpose(1, 2)


class MeanPattern(Plain):
    """The head's own mean pattern over the data; the values are kept.

    Position by position, so all inputs must have one length.
    """

    joint = False
    listens = True
    name = "mean_pattern"
    pass_name = "mean patterns"

    def __init__(self) -> None:
        self._sums: dict[Site, Tensor] = {}
        self._counts: dict[Site, int] = {}
        self._z: dict[Site, list[Tensor]] = {}

    def begin(self, subject: Subject, data: Data) -> None:
        """Add up every head's pattern.

        Raises:
            ValueError: inputs differ in length, or are padded.
        """
        self._sums.clear()
        self._counts.clear()
        for batch in data():
            for tower, tokens in batch.tokens.towers.items():
                if bool((tokens.role == _PAD).any()):
                    raise ValueError(_of_one_length(tower))
            settings = logits_unread(subject, batch)
            with listen(subject, batch, self._add):
                subject.forward(batch, **settings)

    def _add(self, call: AttentionCall) -> None:
        total = call.pattern().double().sum(0)
        known = self._sums.get(call.site)
        if known is not None and known.shape != total.shape:
            raise ValueError(_of_one_length(call.site.tower))
        self._sums[call.site] = total if known is None else known + total
        self._counts[call.site] = self._counts.get(call.site, 0) + call.batch

    def start(self, subject: Subject, batch: Batch) -> None:
        self._z.clear()

    def on_call(self, call: AttentionCall) -> None:
        mean = (self._sums[call.site] / self._counts[call.site]).float()
        value = call.value.float().repeat_interleave(call.heads // call.kv_heads, 1)
        self._z.setdefault(call.site, []).append(torch.matmul(mean, value).transpose(1, 2))

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        return _joined(self._z[site]).to(recorded.z[site].dtype)


def _of_one_length(tower: str) -> str:
    return (
        f"A mean pattern must be taken over inputs of one length, and those of {tower} differ. "
        "Choose `--ablation uniform`, or inputs of one length."
    )


class KnockedOut(Plain):
    """Some keys forbidden to some queries by role; the rest of the row takes their weight."""

    joint = False
    listens = True

    def __init__(self, queries: str, keys: str) -> None:
        self.name = f"knock_out:{queries}->{keys}"
        self._queries, self._keys = queries, keys
        self._z: dict[Site, list[Tensor]] = {}
        self._examples: dict[Site, set[int]] = {}

    def touches(self, site: Site) -> bool:
        return bool(self._examples.get(site))

    def reached(self, batch: Batch, site: Site) -> Tensor:
        touched = torch.tensor(sorted(self._examples.get(site, ())), dtype=torch.long)
        return torch.isin(torch.arange(batch.size), touched)

    def start(self, subject: Subject, batch: Batch) -> None:
        self._z.clear()
        self._examples.clear()

    def on_call(self, call: AttentionCall) -> None:
        both = _examples_with(call, self._queries, True) & _examples_with(call, self._keys, False)
        z = edited_z(call, knock_out("*", self._queries, self._keys)) if both else _z_of(call)
        self._z.setdefault(call.site, []).append(z)
        self._examples.setdefault(call.site, set()).update(both)

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        if not self.touches(site):  # nothing to forbid here: the head stays as it is
            return recorded.z[site]
        return _joined(self._z[site])


def _joined(parts: list[Tensor]) -> Tensor:
    """``[batch query head value_width]`` of a layer's calls, which are parts of its queries."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _z_of(call: AttentionCall) -> Tensor:
    """A copy of the call's own z ``[batch query head value_width]``."""
    return call.z.transpose(1, 2).clone()


def _examples_with(call: AttentionCall, role: str, is_query: bool) -> set[int]:
    """The examples of which a call has queries (or keys) of a role."""
    index = call.query_index if is_query else call.key_index
    if call.moment is None or call.moment.tokens is None or index is None:
        return set()
    tower = call.site.tower if is_query else call.key_tower or call.site.tower
    there = index[call.moment.with_role(tower, index, (role,))].cpu()
    return set(call.moment.tokens[tower].example[there].tolist())
