"""What each head, block and embedding adds to a logit by itself, along the residual stream alone.

With the scales of all norms on the way frozen at their values, a logit is a sum over everything
that was added to the residual stream at the position where it is read: heads, MLPs, biases, the
embedding (direct logit attribution, Elhage et al., 2021, "A Mathematical Framework for Transformer
Circuits"). Nothing here knows a model by name: the path is followed while the model runs, and the
sum of all parts must equal the logit, or the decomposition is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.direct.linear_functions import product
from probes.direct.path_parts import DirectContributions, example_sums
from probes.direct.path_watch import PathWatch
from probes.direct.residual_path import Part, PathError, is_on_path
from probes.heads import Site

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject

Metric = Callable[[Any], Tensor]
"""Takes the model's output, gives float ``[example]``: sums and differences of logits."""

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2


def direct_contributions(
    subject: Subject,
    batch: Batch,
    metric: Metric,
    *,
    settings: Mapping[str, Any] | None = None,
) -> DirectContributions:
    """Write a metric of the logits as a sum over heads, MLPs, biases and embeddings.

    One forward, and a backward along the residual path only. Parameters need no gradients and
    get none; hooks and training flags are as before, also after an exception.

    Args:
        metric: linear in the logits, for example the logit of the target minus another's.
        settings: go to the model's forward.

    Raises:
        PathError: the output is not such a sum (a pooler's tanh, an MLP before the logits), or
            the parts do not add up to it; the sentence says why.
    """
    return contributions_to(subject, batch, [metric], settings=settings)[0]


def contributions_to(
    subject: Subject,
    batch: Batch,
    metrics: Sequence[Metric],
    *,
    settings: Mapping[str, Any] | None = None,
) -> list[DirectContributions]:
    """`direct_contributions` to several metrics of one forward."""
    collected = _Collected()
    watch = PathWatch(subject, collected.receive)
    with torch.inference_mode(False), torch.no_grad():
        with watch.watching() as path:
            output = subject.forward(batch, **(settings or {}))
            values = [metric(output) for metric in metrics]
        found = []
        for number, value in enumerate(values):
            if not is_on_path(value):
                raise PathError(_no_path_sentence(watch))
            collected.begin(value.shape[0])
            torch.autograd.grad(
                value,
                list(path.anchors.values()),
                torch.ones_like(value),
                retain_graph=number + 1 < len(values),
                allow_unused=True,
            )
            found.append(_checked(subject, batch, watch, collected, value.detach()))
    return found


def by_source(call: AttentionCall, gradient: Tensor, heads: Sequence[int] | None = None) -> Tensor:
    """Float32 ``[batch head query key]``: what each head adds at a query from each key.

    ``pattern[query, key] * (value[key] . gradient[query])``; its sum over keys is
    `DirectContributions.heads` where rows sum to 1 or less.

    Args:
        call: the attention call of the same forward.
        gradient: ``[batch query head value_width]`` of the call's site.
        heads: only these.
    """
    chosen = list(range(call.heads)) if heads is None else list(heads)
    group = call.heads // call.kv_heads
    value = call.value[:, [head // group for head in chosen]].float()
    direction = gradient[:, :, chosen].transpose(1, 2).to(value.device, value.dtype)
    result = value.new_zeros(call.batch, len(chosen), call.queries, call.keys)
    for tile in call.tiles():
        here = direction[tile.batch, :, tile.rows]
        along = torch.matmul(here, value[tile.batch, :, : tile.keys].transpose(-1, -2))
        result[tile.batch, :, tile.rows, : tile.keys] = tile.pattern[:, chosen] * along
    return result


class _Collected:
    """Gradients and contributions as the backward brings them in."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, examples: int) -> None:
        self.examples = examples
        self.gradients: dict[Site, Tensor] = {}
        self.sums: dict[Part, Tensor] = {}

    def receive(self, part: Part, gradient: Tensor, values: Tensor) -> None:
        if part.kind == "heads":
            assert part.site is not None
            known = self.gradients.get(part.site)
            self.gradients[part.site] = gradient if known is None else known + gradient
            return
        added = example_sums(product(gradient, values), self.examples)
        known = self.sums.get(part)
        self.sums[part] = added if known is None else known + added


def _checked(
    subject: Subject, batch: Batch, watch: PathWatch, collected: _Collected, metric: Tensor
) -> DirectContributions:
    z: dict[Site, Tensor] = {}
    gradient: dict[Site, Tensor] = {}
    biases: dict[Site, Tensor] = {}
    anatomy, examples, sums = subject.layout.anatomy, collected.examples, collected.sums
    for site, arrived in collected.gradients.items():
        written, matrix = watch.written[site], anatomy.output_matrix(site)
        if site in watch.without_block:
            raise PathError(
                f"The block that {site} stands in must be known to tell the residual stream from "
                "what its block reads."
            )
        assert matrix is not None
        wide = arrived.to(torch.promote_types(arrived.dtype, torch.float32))
        matrix = matrix.to(wide.device, wide.dtype)
        z[site] = written.arranged(written.z, examples)
        moved = torch.einsum("...m,hwm->...hw", wide, matrix)
        gradient[site] = written.arranged(moved, examples)
        if written.bias is not None:
            added = written.arranged(wide @ written.bias.to(wide.dtype), examples)
            biases[site] = example_sums(added, examples)
    found = DirectContributions(
        batch=batch,
        metric=metric.cpu(),
        z=z,
        gradient=gradient,
        biases=biases,
        mlps={p.site: v for p, v in sums.items() if p.kind == "block" and p.site is not None},
        embedding={p.name: v for p, v in sums.items() if p.kind == "embedding"},
        others={p.name: v for p, v in sums.items() if p.kind == "other"},
        constant=sums.get(Part("constant"), torch.zeros(examples)),
        missing=_missing(subject, gradient),
        softcaps=tuple(watch.mode.softcaps),
    )
    parts = torch.stack([*found.parts, found.metric]).double()
    size = parts.abs().amax(0).clamp_min(1e-12)
    apart = parts[:-1].sum(0) - parts[-1]
    mismatch, limit = float((apart.abs() / size).max()), tolerance_of(subject.dtype)
    if mismatch <= limit:
        return replace(found, mismatch=mismatch)
    if examples > 1 and float(apart.sum().abs() / size.sum()) <= limit:
        raise PathError(
            "The parts add up over all examples but not example by example, so their rows cannot "
            "be told apart. Run one example at a time."
        )
    raise PathError(
        f"The parts must add up to the metric, they miss it by {mismatch:.1e} of the largest "
        f"part.{_cut_sentence(watch)}"
    )


def tolerance_of(dtype: torch.dtype) -> float:
    """How far the sum of the parts may be from the metric, in units of the largest part."""
    return _TOLERANCE.get(dtype, _HALF_TOLERANCE)


def _missing(subject: Subject, reached: Mapping[Site, Tensor]) -> dict[Site, str]:
    layout, missing = subject.layout, {}
    with_path = {site.tower for site in reached}
    for place in layout.sites:
        site = place.site
        if site in reached:
            continue
        if site not in layout.anatomy.projections:
            missing[site] = layout.anatomy.missing.get(
                f"{site} output projection", "Its output projection is not verified."
            )
        elif site.tower in with_path:
            missing[site] = f"What {site} writes does not reach the output by addition alone."
        else:
            missing[site] = (
                f"{site.tower} has no direct path: what its heads write reaches the output only "
                "through other parts of the model that read it."
            )
    return missing


def _cut_sentence(watch: PathWatch) -> str:
    if not watch.mode.cuts:
        return ""
    name, path = watch.mode.cuts[-1]
    return f" The last function that took the residual stream is `{name}` in {path or 'the model'}."


def _no_path_sentence(watch: PathWatch) -> str:
    if not watch.written:
        return "No output projection of a head was seen to run, so nothing has a direct path."
    unknown = [
        f"{part}: {why}"
        for part, why in watch.layout.anatomy.missing.items()
        if part.endswith("output projection")
    ]
    if unknown or not watch.mode.cuts:
        return " ".join(["No linear path leads from the stream to the metric.", *unknown[:1]])
    name, path = watch.mode.cuts[-1]
    return (
        f"The metric must be linear in the residual stream, but `{name}` in {path or 'the model'} "
        "stands between them. No head has a contribution of its own there."
    )
