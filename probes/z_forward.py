"""A forward whose graph is kept from the heads' outputs on, to take gradients there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from probes.attention_call import AttentionCall
from probes.block_gates import BlockGates, gated
from probes.edits.edit import EditPlace, EditReport
from probes.heads import Site
from probes.listening import attach, no_attention_sentence
from probes.tap import Attached, TapError

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_INDEPENDENT = (
    "The objective must depend on the heads by a path that gradients can go, it does not. Check "
    "that it uses the model's output and does not detach it."
)


class ZForward:
    """One forward, of which gradients of several objectives can be taken.

    Attributes:
        output: what the model returned, with its graph.
        z: ``[batch query head value_width]`` by site, after all edits, detached.
        calls: the attention calls of each site, detached, if they were asked for.
        gates: the gates behind the blocks that were named.
    """

    def __init__(
        self,
        batch: Batch,
        output: Any,
        pieces: Mapping[Site, list[Tensor]],
        axis: Mapping[Site, int],
        calls: Mapping[Site, list[AttentionCall]],
        gates: BlockGates,
    ) -> None:
        self.batch, self.output, self.calls, self.gates = batch, output, calls, gates
        self._pieces, self._axis = pieces, axis
        self.z = {s: self._joined(s, [p.detach() for p in parts]) for s, parts in pieces.items()}

    def gradient(
        self, objective: Tensor, *, without_block: int | None = None, last: bool = True
    ) -> dict[Site, Tensor | None]:
        """Float32 ``d sum(objective) / d z`` by site; None where no path leads to the objective.

        Args:
            objective: float ``[example]``, made of `output` within `differentiating`.
            without_block: gradients pass the block of this gate by on the residual path.
            last: let go of the graph; no other gradient can be taken then.

        Raises:
            TapError: the objective does not depend on any head.
            ValueError: the objective is not one number per example.
        """
        _refuse_objective(objective)
        flat = [piece for pieces in self._pieces.values() for piece in pieces]
        shut = nullcontext() if without_block is None else self.gates.shut(without_block)
        with differentiating(), shut:
            total = objective.sum()
            found = torch.autograd.grad(total, flat, retain_graph=not last, allow_unused=True)
        if without_block is None and all(part is None for part in found):
            raise TapError(_INDEPENDENT)
        of_piece = iter(found)
        gradient: dict[Site, Tensor | None] = {}
        for site, pieces in self._pieces.items():
            parts = [next(of_piece) for _ in pieces]
            filled = [
                torch.zeros_like(piece, dtype=torch.float32) if part is None else part.float()
                for part, piece in zip(parts, pieces, strict=True)
            ]
            lost = all(part is None for part in parts)
            gradient[site] = None if lost else self._joined(site, filled)
        return gradient

    def _joined(self, site: Site, pieces: Sequence[Tensor]) -> Tensor:
        if len(pieces) == 1:
            return pieces[0]
        axis = self._axis[site]
        rest = {(*piece.shape[:axis], *piece.shape[axis + 1 :]) for piece in pieces}
        if len(rest) > 1:
            shapes = ", ".join(str(list(piece.shape)) for piece in pieces[:3])
            raise TapError(
                f"The calls of {site} must differ in their number of "
                f"{'heads' if axis == 2 else 'queries'} only to be put together, got {shapes}."
            )
        return torch.cat(list(pieces), dim=axis)


def z_forward(
    subject: Subject,
    batch: Batch,
    *,
    sites: Iterable[Site] | None = None,
    calls: bool = False,
    gates: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> ZForward:
    """Run a subject in evaluation mode, with whatever edits are in force, and keep the graph.

    Args:
        sites: only these; by default every site that the input reaches.
        calls: keep the attention calls too.
        gates: paths of blocks that `ZForward.gradient` may be asked to go around.
        settings: for the model's forward.

    Raises:
        TapError: a site that was named is not reached, or runs without gradients.
        ValueError: gradient checkpointing is on, or a block cannot be gone around.
    """
    _refuse_checkpointing(subject.model)
    layout = subject.layout
    chosen = [s.site for s in layout.sites] if sites is None else list(sites)
    if not chosen:
        raise TapError(no_attention_sentence(subject))
    pieces: dict[Site, list[Tensor]] = defaultdict(list)
    kept: dict[Site, list[AttentionCall]] = defaultdict(list)
    heads = {site: list(range(layout.site(site).heads)) for site in chosen}
    watch = _Watched(chosen, pieces)
    numbers: Counter[Site] = Counter()
    attached = Attached(
        frozenset(chosen),
        on_z=lambda site, z, step: numbers.update({site: z.numel()}),
        on_call=(lambda call: kept[call.site].append(_kept(call))) if calls else None,
        edits=((watch, heads, EditReport(watch.label, ())),),
    )
    with (
        differentiating(),
        subject.evaluating(),
        attach(subject, attached),
        gated(subject.model, gates) as stand,
    ):
        output = subject.call(batch, **(settings or {}))
    silent = [str(site) for site in chosen if site not in pieces]
    if silent and (sites is not None or not pieces):
        raise TapError(
            f"Every layer asked for must be reached by this input, {', '.join(silent[:4])} "
            f"{'was' if len(silent) == 1 else 'were'} not. Add what reaches it (an image for a "
            "vision tower)."
        )
    for site, parts in pieces.items():
        _refuse_a_part(site, sum(part.numel() for part in parts), numbers[site])
    axis = {site: 2 if layout.site(site).rule == "heads" else 1 for site in chosen}
    return ZForward(batch, output, dict(pieces), axis, dict(kept), stand)


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, also within a caller's ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass
class _Watched:
    """An edit that changes no value and keeps z where gradients can be asked for."""

    heads: Any
    pieces: dict[Site, list[Tensor]]
    label: str = "gradient"
    stage: Literal["z"] = "z"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        if not torch.is_grad_enabled():
            raise TapError(
                f"{place.site} must run with gradients, the model's own code turns them off "
                "there (`torch.no_grad`). Ask for the gradients of other towers only."
            )
        if not values.requires_grad:
            values = values.detach().requires_grad_(True)
        self.pieces[place.site].append(values)
        return values


def _kept(call: AttentionCall) -> AttentionCall:
    """A call that outlives its forward: detached, without the graph."""
    tensors = {name: getattr(call, name) for name in ("value", "z", "query", "key", "whole")}
    bare = {name: None if t is None else t.detach() for name, t in tensors.items()}
    mask = call.mask
    if mask.tensor is not None:  # a learned position bias hangs on the graph too
        mask = replace(mask, tensor=mask.tensor.detach())
    return replace(call, mask=mask, **bare)


def _refuse_a_part(site: Site, at_calls: int, at_projection: int) -> None:
    # A layer that calls attention for some of its positions in a way that is not followed.
    if at_calls != at_projection:
        raise TapError(
            f"The attention calls of {site} must give out all that its output projection reads "
            f"({at_projection} numbers), they give {at_calls}. Leave this layer or tower out."
        )


def _refuse_checkpointing(model: nn.Module) -> None:
    # transformers checkpoints in training mode only, timm (`grad_checkpointing`) in any. Either
    # runs the forward without a graph, or a second time when the hooks are gone.
    for name, module in model.named_modules():
        own = getattr(module, "gradient_checkpointing", False) is True and module.training
        if own or getattr(module, "grad_checkpointing", False) is True:
            raise ValueError(
                "Gradient checkpointing must be off while gradients of head outputs are taken, "
                f"it is on in {name or type(module).__name__}. Call "
                "`model.gradient_checkpointing_disable()` or `set_grad_checkpointing(False)`."
            )


def _refuse_objective(values: Any) -> None:
    if not isinstance(values, Tensor) or values.ndim != 1:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The objective must be one number per example (one axis), got {got}. Sum it over "
            "what each example is read at."
        )
    if not values.requires_grad:
        raise TapError(_INDEPENDENT)
