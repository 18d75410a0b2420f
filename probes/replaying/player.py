"""Run a model with recorded outputs in place of all modules that ended before a cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.heads import Site
from probes.operations import tensors_in
from probes.replaying.call_tree import Call, CallTree
from probes.replaying.dice import Dice, same_dice
from probes.replaying.proof import Knowledge, SpoiledError
from probes.replaying.restart import script_of
from probes.replaying.returned import mapped, repeated, version_of
from probes.replaying.short_circuit import Action, short_circuit
from probes.replaying.z_change import Change, ReplayError, edited

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(eq=False)
class Player:
    """The recorded forward, and the means to run the model again with parts of it.

    Attributes:
        batch: on the model's device.
        settings: for the model's forward.
        dice: random numbers that the model drew, None for models that draw none.
    """

    subject: Subject
    batch: Batch
    settings: Mapping[str, Any]
    tree: CallTree
    known: Knowledge
    dice: Dice | None
    _versions: list[tuple[str, Tensor, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for call in self.tree.calls:
            if call.has_output:
                kept = tensors_in(call.returned())
                self._versions += [(call.path, tensor, version_of(tensor)) for tensor in kept]

    def play(
        self,
        special: Mapping[Call, Action],
        cut: Call | None,
        changes: Mapping[Site, Change] | None = None,
        copies: Batch | None = None,
    ) -> Any:
        """The model's output, where calls that ended before the cut return what they returned.

        Args:
            special: what some calls do instead.
            cut: None to run everything.
            changes: made by plain edits.
            copies: several copies of the batch, run in its place.

        Raises:
            ReplayError: the model does not call what it called in the recorded forward.
            SpoiledError: it changed recorded tensors in place.
        """
        number = 1 if copies is None else copies.size // max(self.batch.size, 1)
        script = script_of(self.tree, special, cut, partial(self._answer, copies=number))
        with self._changed(changes), short_circuit(script) as unplayed:
            output = self._call(self.batch if copies is None else copies)
            missed = unplayed()
        if missed:
            raise ReplayError(
                f"The model must call {self.tree.outline.path[missed[0]]} as it did in the "
                "recorded forward, and did not. Use `run_whole`."
            )
        changed = {path for path, t, version in self._versions if version_of(t) != version}
        if changed:
            self.known.frail |= changed
            raise SpoiledError(
                f"What {min(changed)} returned must stay as it is, and was changed in place. "
                "Record the batch again."
            )
        return output

    @contextmanager
    def _changed(self, changes: Mapping[Site, Change] | None) -> Iterator[None]:
        with edited(self.subject, changes) if changes else nullcontext():
            yield

    def _call(self, batch: Batch) -> Any:
        # In inference mode PyTorch does not tell whether recorded tensors are changed in place.
        evaluating, dice = self.subject.evaluating(), same_dice(self.dice)
        with evaluating, dice, torch.inference_mode(False), torch.no_grad():
            return self.subject.call(batch, **self.settings)

    def _answer(self, call: Call, copies: int) -> Action | None:
        if copies > 1 and self.tree.outline.role[call.module] == "leaf":
            return None  # whether it has a row for each example (a position table has not) is open
        rows, frail = self.batch.size, call.path in self.known.frail

        def hand_out(tensor: Tensor) -> Tensor:
            if copies > 1 and (tensor.shape[:1] != (1,) or rows <= 1):
                return repeated(tensor, copies)
            return tensor.clone() if frail else tensor

        return Action(lambda *_: mapped(call.returned(), hand_out))
