"""Where a model's output is read: next tokens, a class, or a vector, example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

Kind = Literal["tokens", "class", "features"]

if TYPE_CHECKING:
    from probes.inputs import Batch


@dataclass(frozen=True)
class Reading:
    """What is read of the output for one batch.

    A *read* is one place where the output is compared: a token that is to be predicted, the
    class of an image, a vector.

    Attributes:
        kind: ``tokens`` (logits ``[batch position vocabulary]``), ``class`` (logits
            ``[batch class]``) or ``features`` (vectors ``[batch width]``).
        examples: number of examples in the batch.
        example: long ``[read]``: the example that a read belongs to.
        position: long ``[read]``: position whose logits are read, or whose vector stands for the
            example where the model gives one per position (-1: their mean); -1 for classes.
        target: long ``[read]``: token or class that should come, -1 where none is known.
        wrong: long ``[read]``: what it is to be told from, -1 for everything else.
        shuffled: long ``[read]``: a wrong target of the same data, for the null; -1 if unknown.
        features: tower -> name of the output that holds its vector.
        classes: float ``[class width]``: one unit vector per class where a class is told by
            cosine (zero-shot), else None.
        scale: factor of those cosines.
    """

    kind: Kind
    examples: int
    example: Tensor
    position: Tensor
    target: Tensor
    wrong: Tensor
    shuffled: Tensor
    features: Mapping[str, str]
    classes: Tensor | None = None
    scale: float = 1.0

    @property
    def reads(self) -> int:
        return self.example.numel()

    @property
    def positions(self) -> Tensor | None:
        """Long ``[kept]``: every position that is read, ascending; None where there are none."""
        return self.position.unique() if self.kind == "tokens" else None

    @property
    def counts(self) -> Tensor:
        """Float64 ``[example]``: reads of each example."""
        return torch.bincount(self.example, minlength=self.examples).double()

    def of(self, output: Any, positions: Tensor | None = None, tower: str = "") -> Tensor:
        """Float32 ``[read width]``: logits (or vectors) at the reads, differentiable.

        Args:
            output: what the model returned.
            positions: the positions that the logits' sequence axis holds, None for all.
            tower: the tower whose vector is read; only for features.
        """
        if self.kind == "features" or self.classes is not None:
            name = self._feature(tower if self.classes is None else IMAGE_TOWER)
            vectors = self._one_each(vectors_of(output, name)).float()
            if self.classes is None:
                return vectors
            unit = torch.nn.functional.normalize(vectors, dim=-1)
            return self.scale * unit @ self.classes.to(unit.device).T
        logits = logits_of(output)
        example = self.example.to(logits.device)
        if self.kind == "class":
            return logits[example].float()
        position = self.position
        if positions is not None:
            position = torch.searchsorted(positions.cpu(), position)
        # Row by row of a flat view: several times as fast as indexing two axes, and no copy at all
        # where everything is read in order.
        flat = example * logits.shape[1] + position.to(logits.device)
        rows = logits.flatten(0, 1)
        if torch.equal(flat, torch.arange(rows.shape[0], device=flat.device)):
            return rows.float()
        return rows.index_select(0, flat).float()

    def per_example(self, values: Tensor) -> Tensor:
        """Float64 ``[example ...]``: ``values [read ...]`` summed over each example's reads."""
        values = values.double()
        total = values.new_zeros(self.examples, *values.shape[1:])
        return total.index_add(0, self.example.to(values.device), values)

    def unread(self, tower: str) -> str:
        """Why heads of a tower have no part in what is read, empty if they may have one."""
        if self.classes is None or tower == IMAGE_TOWER:
            return ""
        return (
            f"Classes are told by fixed vectors of their words, so heads of {tower} have no part "
            "in it."
        )

    def _one_each(self, given: Tensor) -> Tensor:
        """``[read width]`` of vectors, sequences of vectors or maps, see `vectors_of`."""
        if given.shape[0] != self.examples:
            raise ReadingError(
                f"The model must give a vector or a sequence for each example, got {given.shape[0]}"
                f" for {self.examples}. Score one example at a time with `batch_size=1`."
            )
        given = given.flatten(2).mean(2) if given.ndim == 4 else given
        given = given[self.example.to(given.device)]
        if given.ndim == 2:
            return given
        position = self.position.to(given.device)
        rows = torch.arange(len(given), device=given.device)
        there = given[rows, position.clamp_min(0)]
        return torch.where((position >= 0)[:, None], there, given.mean(1))

    def _feature(self, tower: str) -> str:
        if tower in self.features:
            return self.features[tower]
        return next(iter(self.features.values()))


class ReadingError(ValueError):
    """The output cannot be read as asked; the message is one or two plain sentences.

    Attributes:
        example_id: id of the example that has nothing to be read, if it is one: a caller may skip
            it.
    """

    def __init__(self, message: str, example_id: str | None = None) -> None:
        super().__init__(message)
        self.example_id = example_id


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned.

    Raises:
        ReadingError: there are none.
    """
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise ReadingError(
            f"The model must return logits, got {type(output).__name__} without any. "
            "Choose `--effect cosine`, or load the model with its head."
        )
    return found


IMAGE_TOWER = "vision"
"""The tower whose vector is set against those of the classes' words."""
VECTORS = ("image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


def vectors_of(output: Any, name: str) -> Tensor:
    """``[batch width]``; of models that give no single vector ``[batch position width]``, or a map
    ``[batch width row column]``.
    """
    found = output if isinstance(output, Tensor) else getattr(output, name, None)
    if not isinstance(found, Tensor):
        raise ReadingError(f"The model's output must hold {name!r}, and does not any more.")
    return found


def vectors_in(output: Any, towers: Sequence[str]) -> dict[str, str]:
    """Tower -> name of the output that holds one vector per example for it."""
    if isinstance(output, Tensor):
        return {towers[0]: ""} if output.ndim in (2, 3, 4) else {}
    there = [name for name in VECTORS if isinstance(getattr(output, name, None), Tensor)]
    own = {"vision": "image_embeds", "language": "text_embeds"}
    found = {tower: own[tower] for tower in towers if own.get(tower) in there}
    if not found:
        rest = [name for name in there if name not in own.values()]
        found = {tower: rest[0] for tower in towers if rest}
    return found


def next_tokens(batch: Batch, tower: str = "language", name: str = "input_ids") -> list[list[int]]:
    """Per example the positions of the tokens that should be predicted from what is before them.

    The answer's tokens where the example has an answer, else every token of text but the first.
    """
    ids = batch.tensors[name]
    roles = _roles(batch, tower, ids.shape)
    real = real_positions(batch, name)
    found = []
    for row in range(ids.shape[0]):
        start = batch.answer_starts[row] if batch.answer_starts else -1
        allowed = real[row] & roles[row]
        allowed[1:] &= real[row, :-1]
        allowed[0] = False
        if start >= 0:
            allowed[:start] = False
            allowed[start:] = real[row, start:]
            allowed[0] = False
        found.append(allowed.nonzero()[:, 0].tolist())
    return found


def real_positions(batch: Batch, name: str = "input_ids") -> Tensor:
    """Bool ``[batch position]``: no padding."""
    ids = batch.tensors[name]
    mask = batch.tensors.get("decoder_attention_mask" if name != "input_ids" else "attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.bool().cpu()
    return torch.ones(ids.shape, dtype=torch.bool)


def _roles(batch: Batch, tower: str, shape: torch.Size) -> Tensor:
    """Bool ``[batch position]``: text, by the token map where it fits."""
    if tower in batch.tokens:
        tokens = batch.tokens[tower]
        if tokens.rows == shape[0] and bool((tokens.lengths == shape[1]).all()):
            return tokens.has_role("text", "system", "special", "generated").reshape(shape)
    return torch.ones(shape, dtype=torch.bool)
