"""One pass over attention calls: every measure, every head, sums per example and their null.

An `Engine` listens while a model runs. Each call's tiles are computed once and shown to all
measures; what stays is one number per example, head and measure. On the first call of each mask
and layout, the same measures run on the *uniform* call, in which every allowed key gets the same
weight: that is their null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import Measure, MeasureContext, Profile, Score
from analysis.plan_cache import PlanCache
from analysis.scores import BatchScores, Column, Curve
from analysis.tile_view import Workspace
from analysis.uniform import uniform_tiles
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.layout import SiteLayout
from probes.tokens.map import TokenMap


class _Anatomy(Protocol):
    def output_matrix(self, site: Site) -> Tensor | None: ...


class _Layout(Protocol):
    @property
    def anatomy(self) -> _Anatomy: ...
    def site(self, site: Site) -> SiteLayout: ...


class Engine:
    """Scores heads from the attention calls of a model, batch after batch.

    Use: ``start_batch(tokens, ids)``, run the model with ``listener`` attached,
    ``finish_batch()``.

    Args:
        layout: of the subject; its anatomy gives the output matrices. ``None``: no anatomy.
        measures: what to compute, see `analysis.measures.select_measures`.
        tile_rows: query rows per tile; by default what fits the cache.
    """

    def __init__(
        self,
        layout: _Layout | None,
        measures: Sequence[Measure],
        *,
        tile_rows: int | None = None,
    ) -> None:
        self.measures = tuple(measures)
        self._order = {measure.name: number for number, measure in enumerate(self.measures)}
        self._layout = layout
        self._tile_rows = tile_rows
        self._workspace = Workspace()
        self._grams: dict[Site, Tensor | None] = {}
        self._ids: tuple[str, ...] = ()
        self._cache: PlanCache | None = None
        self._clear()

    def start_batch(self, tokens: TokenMap | None, examples: Sequence[str] | int) -> None:
        """Forget the last batch and expect one of these examples.

        Args:
            tokens: the batch's token map; without one, position and role measures are left out.
            examples: the examples' ids, or their number.
        """
        ids = range(examples) if isinstance(examples, int) else examples
        self._ids = tuple(str(example) for example in ids)
        self._cache = PlanCache(tokens, len(self._ids))
        self._clear()

    def listener(self, call: AttentionCall) -> None:
        """Measure one call. Attach this to the tap.

        Raises:
            RuntimeError: if no batch was started.
        """
        if self._cache is None:
            raise RuntimeError("A batch must be started before calls arrive. Call start_batch().")
        plan, new = self._cache.find(call)
        if isinstance(plan, str):
            self._reasons.update({(call.site.tower, m.name): plan for m in self.measures})
            return
        chosen = self._applicable(call, plan)
        if new and any(measure.reads_pattern for measure in chosen):
            self._measure_uniform(call, plan, chosen)
        view = CallView(
            call.site, plan, call.heads, call.queries, call.keys,
            z=call.z, output_gram=self._output_gram(call.site), workspace=self._workspace,
        )  # fmt: skip
        finishers = [(measure, measure.start(view)) for measure in chosen]
        if view.wants_tiles:
            if plan.uniform is None:
                self._measure_uniform(call, plan, ())  # counts of keys and readers come with it
            view.stream(call.tiles(rows=self._tile_rows))
        self._finite.append((call.site, _finite(call.z, plan)))
        for measure, finish in finishers:
            for result in finish():
                self._add(call, plan, measure, result)
        view.release()

    def finish_batch(self) -> BatchScores:
        """The sums of the batch.

        Raises:
            ValueError: if the attention output or a score of some layer was NaN or infinite;
                the sentence names tower and layer.
        """
        for site, finite in self._finite:
            if not bool(finite):
                raise ValueError(
                    f"The attention output of {site} must be finite, got NaN or infinity. Check "
                    "the weights, or load the model with dtype='float32'."
                )
        scores = self._gather()
        self._clear()
        return scores

    def _clear(self) -> None:
        self._sums: dict[tuple[Site, int, int, str, str, str], list[Tensor]] = {}
        self._curves: dict[tuple[str, int, str], Curve] = {}
        self._finite: list[tuple[Site, Tensor]] = []
        self._reasons: dict[tuple[str, str], str] = {}

    def _applicable(self, call: AttentionCall, plan: CallPlan) -> list[Measure]:
        context = MeasureContext(
            call.site, call.heads, plan.tokens, plan.key_tokens,
            self._output_gram(call.site) is not None, plan.batch,
        )  # fmt: skip
        chosen = []
        layout = self._layout
        mixed = layout is not None and layout.site(call.site).row_sums == "any"
        for measure in self.measures:
            verdict = measure.applies(context)
            if verdict is True and mixed and measure.reads_pattern:
                verdict = (
                    f"The heads of {call.site.tower} are mixed after the softmax, so rows of a "
                    f"pattern are no distributions and {measure.name} is not measured there."
                )
            if verdict is True:
                chosen.append(measure)
            else:
                self._reasons[call.site.tower, measure.name] = verdict
        return chosen

    def _output_gram(self, site: Site) -> Tensor | None:
        # Kept instead of the matrix itself, which may be a copy as large as the layer's weight.
        if site not in self._grams:
            anatomy = None if self._layout is None else self._layout.anatomy
            matrix = None if anatomy is None else anatomy.output_matrix(site)
            if matrix is not None:
                matrix = matrix.detach().float()
                matrix = matrix @ matrix.transpose(-1, -2)
            self._grams[site] = matrix
        return self._grams[site]

    def _measure_uniform(
        self, call: AttentionCall, plan: CallPlan, measures: Sequence[Measure]
    ) -> None:
        view = CallView(call.site, plan, 1, call.queries, call.keys, workspace=self._workspace)
        finishers = [(m.name, m.start(view)) for m in measures if m.reads_pattern]
        view.stream(uniform_tiles(call, view))
        plan.all_used = bool(plan.used.all())
        for name, finish in finishers:
            for result in finish():
                sums = result.numerator, result.denominator
                if isinstance(result, Profile):
                    plan.null_profiles[name] = sums
                else:
                    plan.nulls[name, result.variant] = sums
        plan.uniform = view

    def _add(
        self, call: AttentionCall, plan: CallPlan, measure: Measure, result: Score | Profile
    ) -> None:
        site = call.site
        if isinstance(result, Profile):
            null = plan.null_profiles.get(measure.name)
            null = null or (torch.zeros_like(result.numerator[:1]),) * 2
            # One denominator for all points stays one: batches may have curves of other lengths.
            heads = len(result.numerator)
            sums = [result.numerator, result.denominator.expand(heads, -1), null[0][0], null[1][0]]
            curve = Curve(site.tower, site.layer, measure.name, result.axis, *sums)
            known = self._curves.get(curve.key)
            self._curves[curve.key] = curve if known is None else known + curve
            return
        null = result.null or plan.nulls.get((measure.name, result.variant))
        if null is None:
            null = torch.zeros_like(result.numerator), torch.zeros_like(result.numerator)
        order = self._order[measure.name]
        unit = result.unit or measure.unit
        key = (site, order, call.heads, measure.name, result.variant, unit)
        shape = result.numerator.shape
        new = [
            part.to(torch.float64).expand(shape)
            for part in (result.numerator, result.denominator, *null)
        ]
        known = self._sums.get(key)
        self._sums[key] = new if known is None else [a + b for a, b in zip(known, new, strict=True)]

    def _gather(self) -> BatchScores:
        keys = sorted(self._sums, key=lambda key: (key[0], key[1]))
        columns = tuple(
            Column(site.tower, site.layer, head, measure, variant, unit)
            for site, _, heads, measure, variant, unit in keys
            for head in range(heads)
        )
        empty = torch.zeros(len(self._ids), 0, dtype=torch.float64)
        sums = [
            torch.cat([empty, *(self._sums[key][index].cpu() for key in keys)], dim=1)
            for index in range(4)
        ]
        broken = (~torch.isfinite(sums[0])).any(0).nonzero().flatten().tolist()
        if broken:
            column = columns[broken[0]]
            raise ValueError(
                f"{column.measure!r} of {column.tower}.L{column.layer} must be finite, got NaN or "
                "infinity in its attention pattern. Check the weights, or load the model with "
                "dtype='float32'."
            )
        curves = {
            key: Curve(c.tower, c.layer, c.measure, c.axis, *(
                part.cpu() for part in
                (c.numerator, c.denominator, c.null_numerator, c.null_denominator)
            ))
            for key, c in self._curves.items()
        }  # fmt: skip
        measured = {(column.tower, column.measure) for column in columns}
        reasons = {key: why for key, why in self._reasons.items() if key not in measured}
        return BatchScores(columns, *sums, curves=curves, examples=self._ids, reasons=reasons)


def _finite(z: Tensor, plan: CallPlan) -> Tensor:
    """Bool scalar, not read yet: whether the output of every counted query is finite."""
    # 0 * x is 0 for a finite x and NaN for any other; no copy in a wider type is made.
    finite = (z * 0).sum(dim=(1, 3)) == 0
    return (finite | ~plan.used).all()
