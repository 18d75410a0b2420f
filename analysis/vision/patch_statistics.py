"""What attention says of each patch, heard while the vision tower (or the language model) runs.

All are means over heads, float32, one number per key. ``c`` is the row of the CLS token; in towers
without one (SigLIP, Qwen-VL) the mean over the queries that may read the key stands for it.

    cls_attention       c_j
    received            mean over queries i, CLS and registers included, of a_ij
    cls_similarity      softmax over j of v_cls . v_j, unscaled; 0 without a CLS token
    value_norm          L1 norm of the value v_j averaged over heads
    deciding_attention  a_qj of the query q that decides the first token of the answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.sinks.received import received
from analysis.vision.prompt_parts import prompt_parts
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.tap import Attached
from probes.tokens.correspondence import Correspondence
from probes.tokens.map import ROLES, TokenMap, TowerTokens


class Need(NamedTuple):
    """A statistic of one layer of a tower."""

    tower: str
    layer: int
    statistic: str


@dataclass
class PatchStatistics:
    """Listens to the prompt's forward and keeps some statistics of it.

    Attributes:
        needs: what is kept.
    """

    needs: frozenset[Need]
    _tokens: TokenMap | None = field(default=None, repr=False)
    _seen: dict[Need, Tensor] = field(default_factory=dict, repr=False)

    @property
    def listeners(self) -> tuple[Attached, ...]:
        """What hears the layers in question; empty where nothing is needed."""
        sites = frozenset(Site(need.tower, need.layer) for need in self.needs)
        return (Attached(sites, on_call=self.hear),) if sites else ()

    def forget(self) -> None:
        """Begin anew: another batch is about to run."""
        self._tokens, self._seen = None, {}

    def hear(self, call: AttentionCall) -> None:
        """Keep what is needed of a call of the prompt."""
        moment = call.moment
        if call.step or moment is None:
            return
        if moment.tokens is None or call.query_index is None or call.key_index is None:
            raise ValueError(
                f"What each patch of {call.site} is must be known to choose among them, for this "
                "input it is not. Run a prepared batch with `subject.forward` or "
                "`subject.generate` (without beams)."
            )
        if moment.tokens is not self._tokens:
            self._tokens, self._seen = moment.tokens, {}
        tokens = moment.tokens[call.site.tower]
        index = call.key_index.flatten()
        for need in self.needs:
            if (need.tower, need.layer) != (call.site.tower, call.site.layer):
                continue
            values = STATISTICS[need.statistic](call, tokens).flatten()
            known = index >= 0
            if need not in self._seen:
                self._seen[need] = torch.zeros(len(tokens), device=values.device)
            self._seen[need][index[known]] = values[known]

    def at_positions(self, need: Need, places: Correspondence | None) -> Tensor:
        """Float ``[position]``: a statistic at the image positions of the language model.

        A position gets the mean of the patches it stands for, NaN if it stands for none.

        Args:
            places: of the batch; not needed for statistics of the language model itself.

        Raises:
            ValueError: the layer did not run.
        """
        if need not in self._seen or self._tokens is None:
            raise ValueError(
                f"{need.tower}.L{need.layer} must run before the attention that depends on it, it "
                "did not. Give the model its image as pixels, not as features."
            )
        seen = self._seen[need]
        if places is None or need.tower != "vision":
            tokens = self._tokens[need.tower]
            return seen[tokens.has_role("image").to(seen.device)]
        return places.to_positions(seen)


def cls_attention(call: AttentionCall, tokens: TowerTokens) -> Tensor:
    """``[batch key]``: see the top of this file."""
    row = _cls_row(call, tokens)
    if row is None:
        return column_mean(call, tokens)
    return call.pattern_of(slice(row, row + 1))[:, :, 0].mean(1)


def column_mean(call: AttentionCall, tokens: TowerTokens) -> Tensor:
    """``[batch key]``: see ``received`` at the top of this file."""
    assert call.query_index is not None
    real = tokens.role[call.query_index.cpu()] != ROLES.index("pad")
    return received(call, real).mean.mean(1)


def cls_similarity(call: AttentionCall, tokens: TowerTokens) -> Tensor:
    """``[batch key]``: see the top of this file."""
    row = _cls_row(call, tokens)
    if row is None:
        return torch.zeros(call.batch, call.keys, device=call.device)
    value = call.value.float()
    return (value @ value[:, :, row, :, None])[..., 0].softmax(-1).mean(1)


def value_norm(call: AttentionCall, tokens: TowerTokens) -> Tensor:
    """``[batch key]``: see the top of this file."""
    return call.value.float().mean(1).abs().sum(-1)


def deciding_attention(call: AttentionCall, tokens: TowerTokens) -> Tensor:
    """``[batch key]``: see the top of this file."""
    assert call.query_index is not None and call.moment is not None
    deciding = prompt_parts(tokens, call.moment.batch).deciding[call.query_index.cpu()]
    rows = deciding.long().argmax(-1)
    found = torch.zeros(call.batch, call.keys, device=call.device)
    for row in rows.unique().tolist():
        mine = (rows == row).to(call.device)
        found[mine] = call.pattern_of(slice(row, row + 1))[mine, :, 0].mean(1)
    return found


STATISTICS: dict[str, Callable[[AttentionCall, TowerTokens], Tensor]] = {
    "cls_attention": cls_attention,
    "received": column_mean,
    "cls_similarity": cls_similarity,
    "value_norm": value_norm,
    "deciding_attention": deciding_attention,
}


def needs_of(tower: str, layers: Iterable[int], *statistics: str) -> tuple[Need, ...]:
    """Some statistics of each of some layers, layer by layer.

    >>> [need.layer for need in needs_of("vision", (0, 2), "received", "value_norm")]
    [0, 0, 2, 2]
    """
    return tuple(Need(tower, layer, name) for layer in layers for name in statistics)


def _cls_row(call: AttentionCall, tokens: TowerTokens) -> int | None:
    """Which query of a call is the CLS token (the first, where there are several)."""
    assert call.query_index is not None
    is_cls = tokens.role[call.query_index.cpu()] == ROLES.index("cls")
    if not bool(is_cls.any()):
        return None
    return int(is_cls[0].long().argmax())
