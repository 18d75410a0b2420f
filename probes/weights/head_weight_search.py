"""Find and verify the weights of every head on one forward, with no table of model names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.anatomy import OutputProjection
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.inputs import Batch
from probes.listening import listen
from probes.load_error import LoadError
from probes.sample_inputs import sample_tensors
from probes.tokens.map import TokenMap
from probes.weights.column_match import NotFound
from probes.weights.head_trace import Trace, expanded, trace_pair, trace_part, turned_alike
from probes.weights.head_weights import HeadMap, HeadWeights
from probes.weights.linear_runs import projected_inside
from probes.weights.norm_gain import NormGain, norm_gain
from probes.weights.weight_mode import Operands, WeightMode
from probes.weights.write_gain import write_gain

if TYPE_CHECKING:
    from probes.subject import Subject

_PARTS = ("query", "key", "value")


def head_weights(subject: Subject, batch: Batch | None = None) -> dict[Site, HeadWeights]:
    """The query, key, value and output matrices of every head, each verified or not measured.

    The model runs once. The numbers of each query, key and value tensor are looked for among the
    outputs of the linear maps that ran before it, and ``x W + b`` is compared with the tensor.
    Where rotary embeddings or a norm come between, the tensor before them is taken, and it is
    checked that lengths and same-place products stayed (rotation), or the norm is named.

    Args:
        batch: what to run; by default a small sample made for the model's kind.

    Returns:
        One `HeadWeights` per attention layer that the input reached; what could not be verified
        is in its ``missing``, as a sentence.

    Raises:
        LoadError: no sample can be made for this model; give a batch.
    """
    search = _Search(subject)
    batch = _sample(subject) if batch is None else batch
    # The search's mode is entered last, so that it sees each call before the tap hands it out.
    with torch.no_grad(), listen(subject, batch, search.heard), search.mode.stack, search.mode:
        subject.forward(batch)
    return search.finished()


def _sample(subject: Subject) -> Batch:
    tensors = sample_tensors(subject)
    if tensors is None:
        raise LoadError(
            f"What {subject.name!r} reads cannot be guessed, so its weights cannot be found "
            "without input. Give a batch: `subject.prepare(...)`."
        )
    return Batch(dict(tensors), TokenMap({}), ())


class _Search:
    def __init__(self, subject: Subject) -> None:
        self.subject, self.layout = subject, subject.layout
        self.found: dict[Site, HeadWeights] = {}
        blocks = self.layout.anatomy.blocks
        self.scopes = {
            place.site: blocks[place.site].path if place.site in blocks else place.path
            for place in self.layout.sites
        }
        projections = self.layout.anatomy.projections.values()
        writers = frozenset(writer for one in projections if (writer := _writer(one)))
        forget_at = {block.path for block in blocks.values()}
        self.mode = WeightMode(subject.model, forget_at, writers)
        self._gains: dict[str, NormGain | None] = {}

    def heard(self, call: AttentionCall) -> None:
        """Trace the three operands of a call as the mode noted them."""
        if call.site in self.found:
            return  # another window of the same layer, with the same weights
        place = self.layout.site(call.site)
        given = (
            self.mode.operands[-place.calls :]
            if place.rule == "heads"
            else (self.mode.operands[-1:])
        )
        self.mode.operands.clear()
        anatomy = self.layout.anatomy
        projection = anatomy.projections.get(call.site)
        missing: dict[str, str] = {}
        if projection is None:
            missing["output"] = anatomy.missing.get(
                f"{call.site} output projection", "No output projection was verified."
            )
        traces = self._traces(given, call, missing)
        self._check_turns(traces, call.heads // max(len(given), 1), missing)
        every = [one for found in traces.values() for one in found]
        weights = HeadWeights(
            site=call.site,
            heads=call.heads,
            projection=projection,
            value_width=place.value_width,
            rotary=any(one.turned for one in every),
            normed=next((one.normed for one in every if one.normed), ""),
            missing=missing,
        )
        self.found[call.site] = replace(weights, **self._maps(traces, call.heads))

    @torch.no_grad()
    def finished(self) -> dict[Site, HeadWeights]:
        """What was found, layer by layer, once the forward is over."""
        done: dict[Site, HeadWeights] = {}
        for site in (place.site for place in self.layout.sites):
            if site not in self.found:
                continue
            weights = self.found[site]
            if weights.projection is not None:
                write = self.mode.lineage.writes.get(_writer(weights.projection))
                found: NormGain | str = (
                    f"What {weights.projection.path or site} gives was not seen to be added to a "
                    "residual stream."
                )
                if write is not None:
                    found = write_gain(self.subject.model, write)
                if isinstance(found, str):
                    weights = replace(weights, missing={**weights.missing, "stream": found})
                else:
                    weights = replace(weights, written=found)
            done[site] = weights
        return done

    def _traces(
        self, given: list[Operands], call: AttentionCall, missing: dict[str, str]
    ) -> dict[str, list[Trace]]:
        """Traces by part, one per call of the layer (each holds a group of heads).

        None for a part of which one could not be traced.
        """
        heads = call.heads // max(len(given), 1)
        rows = call.z[:, :heads].numel() // call.z.shape[-1]
        norms = self.mode.lineage.norm_paths
        pairs = [trace_pair(one, heads, rows, norms) for one in given]
        width = call.value.shape[-1]
        every: dict[str, list[Trace | NotFound]] = {
            "query": [query for query, _ in pairs],
            "key": [key for _, key in pairs],
            "value": [trace_part("value", one.value, heads, width, norms) for one in given],
        }
        found: dict[str, list[Trace]] = {}
        for part, traced in every.items():
            traces = [one for one in traced if isinstance(one, Trace)]
            problem = next((str(one) for one in traced if isinstance(one, NotFound)), "")
            found[part] = traces
            problem = problem or self._problem_of(traces, call.site)
            if problem:
                found[part] = []
                missing[part] = f"The {part} was not traced to a linear map: {problem}."
        return found

    def _problem_of(self, traces: list[Trace], site: Site) -> str:
        if len({id(one.run) for one in traces}) != 1:
            return "its heads do not come from one linear map"
        run = traces[0].run
        inner = projected_inside(run.node, self.scopes[site])
        if not inner:
            return ""
        return (
            f"{run.source.path} reads what {inner} made of the layer's input, so no single matrix "
            "takes the residual stream there"
        )

    def _check_turns(
        self, traces: dict[str, list[Trace]], heads: int, missing: dict[str, str]
    ) -> None:
        for query, key in zip(traces["query"], traces["key"], strict=False):
            if query.normed or key.normed or not (query.turned or key.turned):
                continue
            if turned_alike(query, key, heads):
                continue
            for part in ("query", "key"):
                missing[part] = (
                    f"The {part} is changed by position in a way that does not keep query times "
                    "key at the same place, so no matrix holds for all positions."
                )
                traces[part] = []
            return

    def _maps(self, traces: dict[str, list[Trace]], heads: int) -> dict[str, Any]:
        """Fields of `HeadWeights`; keys and values reduced to the heads that differ."""
        columns = {
            part: torch.cat([expanded(one.columns, heads // len(found)) for one in found])
            for part, found in traces.items()
            if found
        }
        group = _groups([columns[part] for part in ("key", "value") if part in columns], heads)
        first = torch.tensor([group.index(one) for one in dict.fromkeys(group)])
        maps: dict[str, Any] = {"kv_of_head": tuple(group)}
        for part, own in columns.items():
            one = traces[part][0]
            chosen = own if part == "query" else own[first.to(own.device)]
            # A constant on the query belongs to the scale of the scores, one on values to W_V.
            factor = one.scaling if part == "value" else 1.0
            shift = None if one.shift is None or len(traces[part]) > 1 else one.shift
            if shift is not None and part != "query":
                shift = expanded(shift, heads)[first.to(own.device)]
            norm = self.mode.lineage.norm_before(one.run.node)
            gain = self._gain(norm, one.run.source.width) if norm else None
            maps[part] = HeadMap(one.run.source, chosen, factor, norm, gain, shift)
        return maps

    def _gain(self, path: str, width: int) -> NormGain | None:
        if path not in self._gains:
            module = self.subject.model.get_submodule(path)
            self._gains[path] = norm_gain(module, path, width)
        return self._gains[path]


def _writer(projection: OutputProjection) -> str | int:
    """How the runs of an output projection are told: by path, or by weight where it has none."""
    if projection.path or projection.weight is None:
        return projection.path
    return projection.weight.data_ptr()


def _groups(shared: list[Tensor], heads: int) -> list[int]:
    """For each query head the number of the key and value head it uses, in order of meeting."""
    if not shared:
        return list(range(heads))
    rows = [tuple(row) for row in torch.cat(shared, dim=1).tolist()]
    order = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return [order[row] for row in rows]
