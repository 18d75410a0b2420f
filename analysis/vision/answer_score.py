"""The tokens of an answer and how probable the model finds each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from analysis.importance.readings import ReadingError, logits_of, real_positions
from probes.z_forward import differentiating

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_DECODED = "decoder_input_ids"


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of all answers of a batch.

    Attributes:
        name: of the tensor that holds them.
        example: long ``[token]``: row of the batch.
        position: long ``[token]``: position in the row, at least 1.
    """

    name: str
    example: Tensor
    position: Tensor

    @property
    def tower(self) -> str:
        """The tower that writes them."""
        return "decoder" if self.name == _DECODED else "language"


def answer_tokens(batch: Batch) -> AnswerTokens:
    """Every token of each example's answer, padding left out.

    Raises:
        ReadingError: an example has no answer; `example_id` names it.
    """
    name = _DECODED if _DECODED in batch.tensors else "input_ids"
    wanted = real_positions(batch, name).clone()
    starts = batch.answer_starts or (-1,) * batch.size
    for row, (example, start) in enumerate(zip(batch.examples, starts, strict=True)):
        if start < 1:
            raise ReadingError(
                f"Example {example.id!r} must have an answer to be explained, it has none. Add "
                "it, or use a model that writes one.",
                example.id,
            )
        wanted[row, :start] = False
    row, position = wanted.nonzero(as_tuple=True)
    return AnswerTokens(name, row, position)


def log_probabilities(
    subject: Subject, batch: Batch, tokens: AnswerTokens, *, differentiable: bool = False
) -> Tensor:
    """Float32 ``[token]``: log-probability, in nats, of each token after all before it.

    Args:
        differentiable: run with gradients, in evaluation mode.
    """
    ids = batch.tensors[tokens.name]
    length, settings = ids.shape[1], {}
    if tokens.name == "input_ids" and "logits_to_keep" in subject.arguments.names:
        settings["logits_to_keep"] = length - int(tokens.position.min()) + 1
    if differentiable:
        with differentiating(), subject.evaluating():
            output: Any = subject.call(batch, **settings)
    else:
        output = subject.forward(batch, **settings)
    logits = logits_of(output)
    offset = length - logits.shape[1]
    if logits.ndim != 3 or offset < 0 or (offset and not settings):
        raise ReadingError(
            f"The model must give one distribution per token of its answer ({length} positions), "
            f"got logits of shape {list(logits.shape)}. Use another model."
        )
    example = tokens.example.to(logits.device)
    position = tokens.position.to(logits.device)
    before = logits[example, position - 1 - offset].float().log_softmax(-1)
    wanted = ids.to(logits.device)[example, position]
    return before.gather(-1, wanted[:, None])[:, 0]
