"""How large a head's output is, before and after its output matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score


@dataclass(frozen=True)
class ZNorm:
    """Mean over queries of ``|z_h|``, the head's output before the output matrix.

    Null: the mean of the other heads of the layer.
    """

    name: str = "z_norm"
    unit: str = "norm"
    costly: bool = False
    reads_pattern: bool = False

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        def finish() -> Iterator[Score]:
            assert call.z is not None
            yield _mean_norm(call, call.z.float().square().sum(-1))

        return finish


@dataclass(frozen=True)
class ContributionNorm:
    """Mean over queries of ``|z_h W_O^h|``, what the head writes into the residual stream.

    Null: the mean of the other heads of the layer.
    """

    name: str = "contribution_norm"
    unit: str = "norm"
    costly: bool = False
    reads_pattern: bool = False

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        if context.has_output_matrix:
            return True
        return (
            f"The output matrix of {context.site.tower} could not be found and verified, so "
            "contribution_norm is not measured there."
        )

    def start(self, call: CallView) -> Finish:
        def finish() -> Iterator[Score]:
            assert call.z is not None and call.output_gram is not None
            # |z W|^2 = z (W W^T) z^T: head_width x head_width instead of a residual per head.
            z = call.z.float()
            yield _mean_norm(call, ((z @ call.output_gram.to(z.device)) * z).sum(-1).clamp_min(0))

        return finish


def _mean_norm(call: CallView, squared: Tensor) -> Score:
    total, count = call.mean_over_queries(squared.sqrt())
    return Score("", total, count, null=(_of_others(total), count.expand_as(total)))


def _of_others(total: Tensor) -> Tensor:
    """``[example head]``: the mean over the other heads; NaN-free for a single head (0)."""
    others = max(total.shape[1] - 1, 1)
    return (total.sum(1, keepdim=True) - total) / others


Z_NORM = ZNorm()
CONTRIBUTION_NORM = ContributionNorm()
