"""A recorded forward of the intact model, run again with other head outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probes.heads import Site
from probes.replaying.call_tree import Call
from probes.replaying.copies import fold_proof, run_folded
from probes.replaying.player import Player
from probes.replaying.proof import Verdict, prove_restarts
from probes.replaying.restart import BlockEnded, Restart, end_of_block, ending, restart_at
from probes.replaying.returned import first_of
from probes.replaying.savings import ReadRows, find_read_rows, untouched_towers
from probes.replaying.short_circuit import Action
from probes.replaying.z_change import Change, ReplayError, checked_change, projecting

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

Changes = Mapping[Site, tuple[Sequence[int], Tensor]]
"""Site to (heads, values); values broadcast to ``[batch query len(heads) value_width]``."""


@dataclass(eq=False)
class RecordedForward:
    """A forward of the intact model, and what it takes to run it again with changed heads.

    Attributes:
        output: of the intact model.
        batch: on the model's device.
        z: by site ``[batch query head value_width]``, model dtype: what the output projection
            read (rows of the batch axis are windows or packed images where the model works so).
        positions: long ``[kept]``: which positions of the sequence the logits hold, None for all.
        calls: by site, the calls in which its z was projected.
        record_trial: records a small input of our own; None if this is one.
    """

    output: Any
    batch: Batch
    z: Mapping[Site, Tensor]
    positions: Tensor | None
    player: Player = field(repr=False)
    calls: Mapping[Site, list[Call]] = field(repr=False)
    record_trial: Callable[[], RecordedForward | None] | None = field(repr=False)
    _restarts: dict[Site, Restart | str] = field(default_factory=dict, repr=False)
    _rows: ReadRows | str | None = field(default=None, repr=False)

    @property
    def subject(self) -> Subject:
        return self.player.subject

    def restarts(self, site: Site) -> Verdict:
        """True where a change starts the model at this layer; else why it runs as a whole.

        A restart is believed when it has given what a whole forward gives, heads changed, once
        for each model and layer (on a small input of our own, where one can be made).
        """
        found, known = self._restart(site), self.player.known
        if isinstance(found, str):
            return found
        if site not in known.restarts:
            if self.record_trial is None:
                return True
            wanted = [s for s in self.z if isinstance(self._restart(s), Restart)]
            prove_restarts(known, wanted, self, self.record_trial)
        return known.restarts[site]

    def run(self, changes: Changes) -> Any:
        """The model's output with other head outputs: what a whole forward with the change gives.

        Raises:
            ReplayError: a site that the batch does not reach, a head that is not there, or values
                of a wrong shape.
        """
        first = self._first(changes)
        one_call = all(isinstance(self._restart(site), Restart) for site in changes)
        if not one_call or self.restarts(first) is not True:
            return self.run_whole(changes)
        return self._restarted(self._checked(changes), first, {}, self._read_rows())

    def run_from(self, changes: Changes) -> Any:
        """`run`, started at the earliest changed layer, proven or not, and all rows computed."""
        return self._restarted(self._checked(changes), self._first(changes), {}, None)

    def run_whole(self, changes: Changes) -> Any:
        """`run` by a whole forward."""
        return self.player.play({}, None, self._checked(changes))

    def block_output(self, site: Site) -> Tensor:
        """``[batch position model_width]``: what the site's block hands on in the intact model."""
        first = first_of(self._block(site).output)
        assert first is not None
        return first

    def run_block(self, site: Site, heads: Sequence[int], values: Tensor) -> Tensor:
        """`block_output` with other head outputs; nothing after the block is computed."""
        stop = {self._block(site): end_of_block()}
        changes = self._checked({site: (heads, values)})
        try:
            if self.restarts(site) is True:
                self._restarted(changes, site, stop, None)
            else:
                self.player.play(stop, None, changes)
        except BlockEnded as ended:
            first = first_of(ended.output)
            assert first is not None
            return first
        raise ReplayError(f"The block of {site} must run, and did not. Report this model.")

    def can_fold(self, site: Site) -> Verdict:
        """True where copies of the batch can be run at once from this layer; else why not.

        Found out with two intact copies, once for each model, layer and set of inputs.
        """
        reason, restart = self.restarts(site), self._restart(site)
        if reason is not True or isinstance(restart, str):
            return reason
        if restart.live:
            return f"The attention of {site} must run again, so a copy cannot have its own z."
        folds = self.player.known.folds
        key = site, self.batch.size == 1, frozenset(self.batch.tensors)
        if key not in folds:
            folds[key] = fold_proof(partial(self._folded, site), self._intact(site), self.output)
        return folds[key]

    def run_copies(self, site: Site, variants: Sequence[tuple[Sequence[int], Tensor]]) -> Any:
        """`run` for several changes of one layer at once: the batch repeated, variant by variant.

        Args:
            variants: (heads, values) of each copy.

        Returns:
            The output with ``len(variants) * batch`` rows; what has no such rows (a matrix of
            images by texts) is None in it.

        Raises:
            ReplayError: copies of the batch cannot be run at once.
        """
        reason = self.can_fold(site)
        if reason is not True:
            raise ReplayError(f"{reason} Run the variants one by one.")
        return self._folded(site, [self._checked({site: variant})[site] for variant in variants])

    @property
    def fewer_rows(self) -> Verdict:
        """True where `run` computes the last block only at positions that are read; else why not.

        Those are `positions`, or the first one where all outputs read no other (a CLS token).
        """
        rows = self._read_rows()
        return True if isinstance(rows, ReadRows) else str(self._rows)

    def _read_rows(self) -> ReadRows | None:
        if self._rows is None:
            self._rows = self._found_rows()
        return self._rows if isinstance(self._rows, ReadRows) else None

    def _found_rows(self) -> ReadRows | str:
        last = max(self.z, key=lambda site: self.calls[site][0].start)
        reason = self.restarts(last)
        if reason is not True:
            return reason
        return find_read_rows(
            self.player.tree,
            self.positions,
            lambda rows: self._restarted({last: self._intact(last)}, last, {}, rows),
            self.output,
            self.player.known,
        )

    def _restarted(
        self,
        changes: Mapping[Site, Change],
        first: Site,
        stop: Mapping[Call, Action],
        rows: ReadRows | None,
    ) -> Any:
        restart, by_edit, tree = self._restart(first), dict(changes), self.player.tree
        assert isinstance(restart, Restart)
        special = untouched_towers(tree, restart.cut, [self.calls[site][0] for site in changes])
        if rows is not None:
            special |= rows.actions(tree)
        special |= stop
        for site, change in changes.items():
            call = self.calls[site][0]
            if call.read is None:
                continue
            by_edit.pop(site)
            actions = {call: projecting(change)}
            if site == first:
                x = change.of(self.z[site]).reshape(call.read.shape)
                actions = restart.actions(x, call.read, rows if call in special else None)
            for here, action in actions.items():
                special[here] = ending(action) if here in stop else action
        return self.player.play(special, restart.cut, by_edit)

    def _intact(self, site: Site) -> Change:
        return Change(tuple(range(self.z[site].shape[2])), self.z[site])

    def _folded(self, site: Site, variants: Sequence[Change]) -> Any:
        restart = self._restart(site)
        assert isinstance(restart, Restart)
        rows = self._read_rows()
        return run_folded(self.player, restart, self.z[site], variants, self.output, rows)

    def _checked(self, changes: Changes) -> dict[Site, Change]:
        return {
            site: checked_change(site, self._z(site), heads, values)
            for site, (heads, values) in changes.items()
        }

    def _z(self, site: Site) -> Tensor:
        if site not in self.z:
            have = ", ".join(str(known) for known in self.z) or "none"
            raise ReplayError(
                f"{site} must have been recorded with this batch, which has {have}. "
                "Name it in `sites`, or add the input that reaches it."
            )
        return self.z[site]

    def _first(self, changes: Changes) -> Site:
        for site in changes:
            self._z(site)
        return min(changes, key=lambda site: self.calls[site][0].start)

    def _restart(self, site: Site) -> Restart | str:
        if site not in self._restarts:
            self._z(site)
            self._restarts[site] = restart_at(self.player.tree, site, self.calls[site])
        return self._restarts[site]

    def _block(self, site: Site) -> Call:
        self._z(site)
        block = self.player.tree.block_of(self.calls[site][0])
        if block is None or not block.has_output or first_of(block.output) is None:
            raise ReplayError(
                f"{site} must lie in a block that returns a tensor, and none was found around it. "
                "Compare the model's output instead."
            )
        return block
