"""ACT: weight on hidden sinks goes to all other keys in proportion, head by head.

Yu et al., *Unveiling and Harnessing Hidden Attention Sinks* (ICML 2024, arXiv 2406.15765), as their
code has it. At the prompt, for each head that is calibrated and each key j:

    s[j]  = mean weight that j receives from the queries that may read it
    sinks = the keys with s[j] > theta, but for the first of them, which is kept
    a <- beta * a on the sinks;  the rest of their weight goes to all other keys, each in proportion

Rows keep their sum. Which heads gain by it is searched offline in the paper; here ``heads`` names
them. Sinks are judged on the pattern before this and other edits of patterns. Of the prompt, all
rows are judged together, so what a row becomes depends on later rows (as in the code): a forward of
prompt and answer at once need not give what writing the answer gives.

Difference from the code: when a token is fed back, the code takes the mean over that one row, so
that ``s`` is the row itself and means something else. Here the sums of the prompt are kept and
each new row is added. ``faithful_decode=True`` does as the code does.

The last keys of a prompt have few readers, so one confident query makes a sink of them; the code
does not mind. ``fewest_readers`` leaves such keys out.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from analysis.sinks.received import received
from probes.attention_call import AttentionCall
from probes.depth import writing_heads
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Head, Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

DEPTH = (2 / 32, 31 / 32)
"""Layers 2 to 30 of 32: the paper spares the first two and the last."""
_BATCHES_KEPT = 2


@dataclass
class _Account:
    """What the keys of one layer have received, for the calibrated heads.

    Attributes:
        total: float32 ``[batch head key]``.
        readers: float32 ``[batch key]``.
        batch: what is run: a second branch of a generation has an account of its own.
        call: the call that was counted last: its tiles may be read again.
        sinks: bool ``[batch head key]`` of that call.
    """

    total: Tensor
    readers: Tensor
    batch: Batch | None = None
    call: weakref.ref[AttentionCall] | None = None
    sinks: Tensor | None = None


@dataclass
class ActEdit:
    """The rows of the heads of one `Act`."""

    method: Act
    heads: list[Head]
    stage: Literal["pattern"] = "pattern"
    _accounts: dict[Site, list[_Account]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.method.label

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        tile = place.tile
        assert tile is not None
        sinks = self._sinks(values, place)[tile.batch, :, None, : tile.keys]
        taken = torch.where(sinks, values, 0.0).sum(-1, keepdim=True)
        rest = torch.where(sinks, 0.0, values).sum(-1, keepdim=True)
        beta = self.method.beta
        moved = torch.where(rest > 0, (1 - beta) * taken, 0.0)
        left = torch.where(rest > 0, beta, 1.0)
        return values * torch.where(sinks, left, 1 + moved / rest.clamp_min(1e-30))

    def _sinks(self, values: Tensor, place: EditPlace) -> Tensor:
        """Bool ``[batch head key]`` for the calibrated heads of a call."""
        call = place.call
        assert call is not None
        batch = None if call.moment is None else call.moment.batch
        known = self._accounts.get(place.site, [])
        account = next((one for one in known if one.batch is batch), None)
        if account is not None and account.call is not None and account.call() is call:
            assert account.sinks is not None
            return account.sinks
        whole = EditPlace(place.site, place.heads, place.step, call, None, place.moment)
        real = ~whole.queries_with("pad")
        if call.key_index is None:
            raise ValueError(
                f"{self.label} must know what {call.site} reads, but its {call.keys} keys are not "
                "the prompt and what was written behind it. Generate with the default cache."
            )
        if call.queries == call.keys or account is None:
            got = received(call, real, edited=False)
            account = _Account(got.total[:, place.heads], got.readers)
        else:
            account = self._with_rows(account, call, self._rows(values, place, real))
        others = [one for one in known if one.batch is not batch]
        self._accounts[place.site] = [account, *others][:_BATCHES_KEPT]
        account.batch, account.call = batch, weakref.ref(call)
        account.sinks = self._judged(account, whole)
        return account.sinks

    def _rows(self, values: Tensor, place: EditPlace, real: Tensor) -> _Account:
        """What keys receive from the new rows alone."""
        call, tile = place.call, place.tile
        assert call is not None and tile is not None
        all_there = values.shape[0] == call.batch and call.queries == 1
        if all_there and len(call.pattern_edits) == 1:  # then these are the model's own weights
            spare = (0, call.keys - tile.keys)
            total = pad(values[..., 0, :] * real[:, None], spare)
            readers = tile.allowed().any(1)[:, 0].to(total) * real
            return _Account(total, pad(readers, spare))
        got = received(call, real, edited=False)
        return _Account(got.total[:, place.heads], got.readers)

    def _with_rows(self, account: _Account, call: AttentionCall, new: _Account) -> _Account:
        if self.method.faithful_decode:
            return new
        gone = (
            account.readers.shape[1] + call.queries - call.keys
        )  # keys that left a window's cache
        if gone < 0:
            raise ValueError(
                f"{call.site} must read one more key for every token that is written, it went from "
                f"{account.readers.shape[1]} to {call.keys}. Generate with the default cache."
            )
        known = call.keys - call.queries
        new.total[..., :known] += account.total[..., gone:]
        new.readers[..., :known] += account.readers[..., gone:]
        return new

    def _judged(self, account: _Account, place: EditPlace) -> Tensor:
        readers = account.readers[:, None]
        mean = account.total / readers.clamp_min(1)
        theta: float | Tensor = self.method.theta
        if self.method.alpha is not None:
            length = (~place.keys_with("pad")).sum(-1).clamp_min(1)
            theta = (self.method.alpha / length)[:, None, None]
        least = 1 if self.method.faithful_decode and place.step else self.method.fewest_readers
        found = (mean > theta) & (readers >= least)
        first = found.cumsum(-1) == 1  # True up to the key before the second one
        return found & ~first


@dataclass(frozen=True)
class Act:
    """See the top of this file; made by `act`."""

    theta: float
    beta: float
    alpha: float | None
    heads: str | tuple[str, ...] | None
    depth: tuple[float, float]
    fewest_readers: int
    faithful_decode: bool

    @property
    def label(self) -> str:
        above = f"theta={self.theta:g}" if self.alpha is None else f"alpha={self.alpha:g}"
        return f"act({above}, beta={self.beta:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit."""
        heads = writing_heads(subject, self.heads, self.depth)
        for site in dict.fromkeys(head.site for head in heads):
            if subject.layout.site(site).rule != "single":
                raise ValueError(
                    f"act sums the columns of one attention call, and {site} makes several. "
                    "Leave the layer out with `heads`."
                )
        return Prepared(edits=(ActEdit(self, heads),))


def act(
    theta: float = 0.1,
    beta: float = 0.4,
    alpha: float | None = None,
    heads: str | tuple[str, ...] | None = None,
    depth: tuple[float, float] = DEPTH,
    fewest_readers: int = 1,
    faithful_decode: bool = False,
) -> Act:
    """Attention calibration: sinks in the middle of a text give part of their weight back.

    Args:
        theta: mean received weight above which a key is a sink; the code takes 0.1 (0.15 in chats).
        beta: fraction of a sink's weight that it keeps.
        alpha: if given, the threshold is ``alpha / N`` for N positions: third parties take 5.
        heads: such as ``language.L3H5``; by default all of the layers in ``depth``.
        depth: layers by relative depth.
        fewest_readers: queries that must have read a key for it to be judged.
        faithful_decode: judge each new token by its own row alone, as the released code does.

    >>> act(alpha=5).label
    'act(alpha=5, beta=0.4)'
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` of act must lie between 0 and 1, got {beta:g}.")
    if theta < 0 or (alpha is not None and alpha <= 0):
        raise ValueError(f"`theta` and `alpha` of act must be positive, got {theta:g} and {alpha}.")
    if fewest_readers < 1:
        raise ValueError(f"`fewest_readers` of act must be at least 1, got {fewest_readers}.")
    return Act(theta, beta, alpha, heads, depth, fewest_readers, faithful_decode)
