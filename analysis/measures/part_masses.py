"""Weight between the parts of a prompt: image, text before and after it, question, answer.

All measures of modality flow share these sums. A *piece* is a set of keys that no other piece
overlaps; every text or image key that is no padding lies in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView, Rows
from analysis.measure import MeasureContext
from analysis.vision.prompt_parts import PromptParts, prompt_parts

IMAGE, OUTPUT = "image", "output"
SIDES = ("before", "between", "after")
KINDS = ("first", "template", "own")
"""Of prompt text: BOS or what stands in its place; what the chat template, the system prompt and
special tokens are; what the user asks."""

_UNMEASURED = "so it is not measured there."


def needs_text_and_image(context: MeasureContext, measure: str) -> Literal[True] | str:
    """True where queries and keys are one sequence that holds text and an image."""
    known = context.needs_positions()
    if known is not True:
        return known
    tower, tokens = context.site.tower, context.tokens
    if not context.same_tower:
        return (
            f"{measure} weighs an image against the text beside it, and {tower} reads another "
            f"sequence, {_UNMEASURED}"
        )
    assert tokens is not None
    if not bool(tokens.has_role("image").any()):
        return (
            f"{measure} weighs an image against the text beside it, and {tower} has no image "
            f"positions in these inputs, {_UNMEASURED}"
        )
    if not bool(tokens.has_role("text", "system", "generated").any()):
        return (
            f"{measure} weighs an image against the text beside it, and {tower} has no text in "
            f"these inputs, {_UNMEASURED}"
        )
    return True


def parts_of_queries(plan: CallPlan) -> PromptParts:
    """What each position of the queries' tower is."""

    def find() -> PromptParts:
        assert plan.tokens is not None
        return prompt_parts(plan.tokens, plan.batch)

    return plan.memo("prompt parts", find)


def queries_in(plan: CallPlan, column: Tensor) -> Tensor:
    """Bool ``[batch query]``: a column ``[n]`` of `PromptParts` at the call's queries."""
    return _at(column, plan.query_index)


class PartMasses:
    """What a call was asked for, and its sums over queries once the last tile has passed.

    Query sets: ``telling`` (`PromptParts.telling`), ``output`` (positions that predict a token of
    the output), ``after`` (prompt text behind the image), ``text`` (all text that may read an
    image) and ``image``.
    """

    def __init__(self, call: CallView) -> None:
        self._call, self._plan = call, call.plan
        self.pieces: dict[str, Tensor] = self._plan.memo("pieces", lambda: _pieces(self._plan))
        self._rows = _ask(call, self.pieces)
        self._sums: dict[str, Tensor] = {}

    def mass(self, queries: str, pieces: Iterable[str]) -> Tensor:
        """Float64 ``[example head]``: weight of a set of queries on some pieces, summed."""
        return self._added(self._of_queries(queries), pieces)

    def pairs(self, queries: str, pieces: Iterable[str]) -> Tensor:
        """Float64 ``[example 1]``: how many keys of some pieces the queries may read, summed."""
        counted = self._plan.memo(("pairs", queries), lambda: self._readable(queries))
        return self._added(counted, pieces)

    def queries(self, queries: str) -> Tensor:
        """Float64 ``[example 1]``: how many queries a set has."""
        return self._plan.memo(
            ("part queries", queries), lambda: self._plan.count_queries(self._where(queries))
        )

    def text(self, *, sides: Iterable[str] = SIDES, kinds: Iterable[str] = KINDS) -> list[str]:
        """Names of the pieces of prompt text of some sides and kinds."""
        wanted = {f"{side} {kind}" for side in sides for kind in kinds}
        return [name for name in self.pieces if name in wanted]

    def _added(self, sums: Tensor, pieces: Iterable[str]) -> Tensor:
        """Sum of some rows of ``[piece example head]``."""
        wanted = frozenset(pieces)

        def choose() -> Tensor:
            chosen = [float(name in wanted) for name in self.pieces]
            return torch.tensor(chosen, dtype=torch.float64, device=self._plan.device)

        return torch.tensordot(self._plan.memo(("pieces", wanted), choose), sums, dims=1)

    def _of_queries(self, queries: str) -> Tensor:
        if queries not in self._sums:
            stacked = torch.stack([rows.values for rows in self._rows.values()])
            self._sums[queries] = self._summed(stacked.double(), queries)
        return self._sums[queries]

    def _readable(self, queries: str) -> Tensor:
        # On the uniform pattern a piece's weight is its share of the keys that a query may read.
        rows = _ask(self._call.uniform, self.pieces)
        shares = torch.stack([of_piece.values for of_piece in rows.values()]).double()
        counts = shares * self._call.read_counts[:, None]
        return self._summed(counts.round(), queries)

    def _summed(self, values: Tensor, queries: str) -> Tensor:
        """Float64 ``[piece example head]`` of ``[piece batch head query]``."""
        plan, where = self._plan, self._where(queries)
        if not plan.single:
            return torch.stack([plan.sum_queries(of_piece, where) for of_piece in values])
        summed = torch.einsum("pbhq,bq->pbh", values, (plan.used & where).double())
        total = values.new_zeros(len(values), plan.examples, values.shape[2])
        return total.index_add_(1, plan.block_example, summed)

    def _where(self, queries: str) -> Tensor:
        def find() -> Tensor:
            parts = parts_of_queries(self._plan)
            columns = {
                "telling": parts.telling,
                "output": parts.predicting,
                "after": parts.after,
                "image": parts.image,
                "text": parts.before | parts.between | parts.after | parts.output,
            }
            where = queries_in(self._plan, columns[queries])
            if queries == "text":
                image = _ask(self._call.uniform, self.pieces)[IMAGE]
                where &= image.values[:, 0] > 0
            return where

        return self._plan.memo(("part set", queries), find)


def part_masses(call: CallView) -> PartMasses:
    """The sums of a call; all measures of this family share them."""
    if "part masses" not in call.shared:
        call.shared["part masses"] = PartMasses(call)
    return call.shared["part masses"]


def _ask(call: CallView, pieces: dict[str, Tensor]) -> dict[str, Rows]:
    return {name: call.key_product(f"piece {name}", where) for name, where in pieces.items()}


def _pieces(plan: CallPlan) -> dict[str, Tensor]:
    """Float ``[batch key]`` by name; pieces without a key are left out, but for the image."""
    return {
        name: where.float()
        for name, column in _columns(parts_of_queries(plan))
        if (where := _at(column, plan.key_index)).any() or name == IMAGE
    }


def _columns(parts: PromptParts) -> Iterator[tuple[str, Tensor]]:
    yield IMAGE, parts.image
    yield OUTPUT, parts.output
    kinds = {
        "first": parts.first,
        "own": parts.own & ~parts.first,
        "template": ~parts.first & ~parts.own,
    }
    for side in SIDES:
        for kind in KINDS:
            yield f"{side} {kind}", getattr(parts, side) & kinds[kind]


def _at(column: Tensor, index: Tensor) -> Tensor:
    """Bool, the shape of ``index``: a column at flat positions, False at -1."""
    known = torch.cat([column, column.new_zeros(1)]).to(index.device)
    return known[index]
