"""One observed forward: every attention call with its place, shapes, sources and proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probes import operations as ops
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.interception import FollowedSoftmax, Surroundings
from probes.lineage import (
    LineageMode,
    Node,
    entering,
    factors_of,
    heads_before_repeat,
    made_from_one_tensor,
    products_behind,
    split_into_heads,
)
from probes.module_stack import ModuleStack
from probes.observed import ModuleRun, ObservedCall
from probes.projections import is_linear, meet_functional, meet_projection, verify_projection
from probes.raw_attention import RawAttention

_UNKNOWN = Site("", 0)


@dataclass
class Observation:
    """Everything that the observed forward showed."""

    calls: list[ObservedCall]
    refused: list[tuple[str, str]]
    runs: list[ModuleRun]
    output: Any


def run_observed(model: nn.Module, forward: Callable[[], Any], examples: int) -> Observation:
    """Run ``forward`` once and note every attention call, its verification and its lineage.

    Args:
        model: root module that ``forward`` calls.
        examples: rows of the batch that ``forward`` runs.
    """
    observer = _Observer(model, examples)
    with torch.no_grad(), observer.stack, observer.mode:
        output = forward()
    return Observation(observer.calls, observer.mode.refused, observer.runs, output)


class _Observer:
    def __init__(self, model: nn.Module, examples: int) -> None:
        self.calls: list[ObservedCall] = []
        self.runs: list[ModuleRun] = []
        self.open_runs: list[ModuleRun] = []
        self.pending: list[int] = []
        self.stack = ModuleStack(model, None, self.entered, self.left)
        self.mode = _Mode(self, self.receive, self._surroundings, lambda: examples)

    def _surroundings(self) -> Surroundings:
        return Surroundings(self.stack.top, heads=self._head_count(), run=self.stack.run)

    def receive(self, raw: RawAttention, note: FollowedSoftmax | None) -> None:
        path = self.stack.top
        call = AttentionCall(
            site=_UNKNOWN,
            path=path,
            ordinal=0,
            value=raw.value,
            z=raw.z,
            mask=raw.mask,
            query=raw.query,
            key=raw.key,
            scale=raw.scale,
            whole=raw.whole,
            compute_dtype=autocast_dtype(raw.z.device.type),
        )
        cross, learned = self._sources(raw)
        self.calls.append(
            ObservedCall(
                path=path,
                occurrence=self.stack.times_called[path] - 1,
                inside=self.stack.next_inside(),
                source=raw.source,
                batch=raw.z.shape[0],
                heads=raw.heads,
                kv_heads=self._kv_heads(raw),
                queries=raw.mask.queries,
                keys=raw.mask.keys,
                head_width=(raw.query if raw.query is not None else raw.value).shape[-1],
                value_width=raw.value.shape[-1],
                causal=_is_causal(call),
                softmax_path="" if note is None else note.path,
                softmax_number=0 if note is None else note.number,
                cross=cross,
                learned_query=learned,
                input_shape=self.open_runs[-1].input_shape if self.open_runs else (),
                mismatch=call.worst_mismatch(),
                row_sums=_row_sums(call),
                z=raw.z,
            )
        )
        self.pending.append(len(self.calls) - 1)

    def _sources(self, raw: RawAttention) -> tuple[bool, bool]:
        """Whether keys come from another sequence than queries, and whether queries are weights.

        Looked at in the module that makes the call; in the one around it where the projections
        are there, and so on.
        """
        pair = self.mode.query_and_key
        if pair is None:
            return False, False
        scope = self.stack.top
        while True:
            (from_query, query_projected), (from_key, key_projected) = (
                entering(node, scope) for node in pair
            )
            if (query_projected and key_projected and from_query and from_key) or not scope:
                break
            scope = scope.rpartition(".")[0]
        same = {id(node) for node in from_query} & {id(node) for node in from_key}
        shared = bool(same) or made_from_one_tensor(from_query, from_key)
        learned = all(node.kind == "weight" for node in from_query)
        return not shared and bool(from_key), learned and not shared

    def _head_count(self) -> int | None:
        """What the module says of its heads, if its query was seen to be cut into as many.

        1 for a module that says a number but calls with one head at a time.
        """
        pair = self.mode.query_and_key
        told = _heads_told_by(self.open_runs[-1].module) if self.open_runs else None
        if told is None or pair is None:
            return None
        return told if split_into_heads(pair[0], told) else 1

    def _kv_heads(self, raw: RawAttention) -> int:
        seen = raw.value.shape[1]
        pair = self.mode.query_and_key
        return seen if pair is None or seen != raw.heads else heads_before_repeat(pair[1], seen)

    def entered(self, path: str, module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        first = next(ops.tensors_in((args, kwargs)), None)
        hidden = kwargs.get("hidden_states") if isinstance(kwargs, dict) else None
        first = hidden if isinstance(hidden, Tensor) else first
        node = None if first is None else self.mode.lineage.of(first)
        shape = () if first is None else tuple(first.shape)
        run = ModuleRun(path, module, node, shape)
        self.runs.append(run)
        self.open_runs.append(run)
        if first is not None and is_linear(module):
            run.read = first
            meet_projection(first, self.calls_behind(first), module, path)

    def left(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self.open_runs:
            run = self.open_runs.pop()
            if run.path == path:
                first = next(ops.tensors_in(output), None)
                if first is not None:
                    run.left = self.mode.lineage.of(first)
                    verify_projection(self.calls, run, first)
                run.read = None
                return

    def calls_behind(self, tensor: Tensor) -> list[ObservedCall]:
        """The calls whose z this tensor is, moved and joined but not changed."""
        return [self.calls[index] for index in self.mode.calls_behind(self.mode.lineage.of(tensor))]

    def mark(self, output: Any) -> None:
        """Write the index of the calls just received onto the node of their output."""
        if self.pending and isinstance(output, Tensor):
            self.mode.lineage.of(output).note = self.pending.pop()
            self.pending.clear()


class _Mode(LineageMode):
    """Lineage mode that knows query and key of the call at hand and marks its output."""

    def __init__(self, observer: _Observer, *args: Any) -> None:
        super().__init__(*args)
        self._observer = observer
        self.query_and_key: tuple[Node, Node] | None = None

    def on_sdpa(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        query = kwargs.get("query", args[0] if args else None)
        key = kwargs.get("key", args[1] if len(args) > 1 else None)
        if isinstance(query, Tensor) and isinstance(key, Tensor):
            self.query_and_key = (self.lineage.of(query), self.lineage.of(key))
        output = super().on_sdpa(func, args, kwargs)
        self._observer.mark(output)
        return output

    def on_product(self, name, args, output, pattern, note, several):
        product = next(products_behind(self.lineage.of(pattern)), None)
        self.query_and_key = None if product is None else factors_of(product)
        return super().on_product(name, args, output, pattern, note, several)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if self._observer.pending:
            self._observer.mark(output)
        if ops.name_of(func) == "linear" and len(args) > 1 and isinstance(args[1], nn.Parameter):
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            calls = self._observer.calls_behind(args[0])
            meet_functional(calls, args[0], args[1], bias, output, self.lineage.of(output))
        return output

    def calls_behind(self, node: Node) -> list[int]:
        """Indices of the calls whose z this tensor is, moved and joined but not changed."""
        found: list[int] = []
        queue, seen = [node], set()
        while queue:
            here = queue.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            if isinstance(here.note, int):
                found.append(here.note)
            elif here.kind in ("shape", "join"):
                queue.extend(here.parents)
        return sorted(found)


def _heads_told_by(module: nn.Module) -> int | None:
    for name in ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads"):
        told = getattr(module, name, None)
        if isinstance(told, int) and not isinstance(told, bool) and told > 0:
            return told
    return None


def _row_sums(call: AttentionCall) -> str:
    """What the rows of the pattern sum to: ``one``, ``below one`` or ``any``."""
    pattern = call.pattern()
    rows = pattern.sum(-1)[pattern.abs().amax(-1) > 0]
    tolerance = 1e-3 if call.value.element_size() >= 4 else 2e-2
    if not rows.numel() or bool(((rows - 1).abs() <= tolerance).all()):
        return "one" if bool((pattern >= -tolerance).all()) else "any"
    weights = bool((pattern >= 0).all()) and bool((rows <= 1 + tolerance).all())
    return "below one" if weights else "any"


def _is_causal(call: AttentionCall) -> bool:
    if call.queries < 2 or call.queries != call.keys:
        return False
    head = slice(0, 1)
    allowed = call.allowed(head, slice(0, call.queries), call.keys)
    return not bool(allowed.triu(1).any())


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that kernels cast to here, None outside autocast."""
    if not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
