"""The two ends of a language model: from words to the residual stream, and back to words."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.anatomy import linear_map
from probes.weights.norm_gain import NormGain, norm_gain

if TYPE_CHECKING:
    from probes.subject import Subject

_TOWERS = ("language", "decoder")


@dataclass(frozen=True)
class Vocabulary:
    """Word embeddings, final norm and unembedding of one tower.

    Attributes:
        tower: whose residual stream they are ends of.
        embedding: float ``[word model_width]``.
        norm, unembedding: the model's own modules; logits are ``unembedding(norm(stream))``, up
            to a scale or cap that keeps the order of words.
        gain: what the norm does to directions, ``None`` where it is of no known form.
    """

    tower: str
    embedding: Tensor = field(repr=False)
    norm: nn.Module = field(repr=False)
    unembedding: nn.Module = field(repr=False)
    gain: NormGain | None = None

    @property
    def words(self) -> int:
        return self.embedding.shape[0]

    @property
    def width(self) -> int:
        return self.embedding.shape[1]

    @cached_property
    def between(self) -> Tensor:
        """Float32 ``[model_width model_width]``: unembedding, then the embedding of each word.

        ``W_U W_E`` with the final norm's gains (not its scale) in front; words are summed over.
        """
        matrix = linear_map(self.unembedding, self.width)
        matrix = matrix if self.gain is None else self.gain.fold(matrix)
        return matrix.float() @ self.embedding.float().to(matrix.device)

    def logits(self, stream: Tensor, words: Tensor | None = None) -> Tensor:
        """Float32 ``[..., word]`` for values of the residual stream ``[..., model_width]``.

        Args:
            words: ids of the words to tell, all by default.
        """
        reference = next(self.unembedding.parameters())
        with torch.no_grad():
            normed = self.norm(stream.to(reference.device, self.embedding.dtype))
            if words is None:
                return self.unembedding(normed).float()
            words = words.to(reference.device)
            if type(self.unembedding) is not nn.Linear:
                return self.unembedding(normed).float()[..., words]
            weight, bias = self.unembedding.weight, self.unembedding.bias
            chosen = nn.functional.linear(normed, weight[words])
            return (chosen if bias is None else chosen + bias[words]).float()


def vocabulary_of(subject: Subject) -> Vocabulary | str:
    """The ends of a subject's language model, or one sentence that says why there are none."""
    anatomy = subject.layout.anatomy
    tower = next((name for name in _TOWERS if name in anatomy.final_norm), "")
    if not tower or not anatomy.unembedding:
        return (
            f"No map from the residual stream of {subject.name!r} to words was verified, so "
            "nothing is told of words."
        )
    embedding = _table(input_embedding(subject.model))
    if embedding is None:
        return f"{subject.name!r} has no table of word embeddings that could be found."
    unembedding = subject.model.get_submodule(anatomy.unembedding)
    norm = subject.model.get_submodule(anatomy.final_norm[tower])
    words = getattr(unembedding, "out_features", None) or _rows(unembedding)
    if words != embedding.shape[0]:
        return (
            f"{subject.name!r} reads {embedding.shape[0]} words and tells {words} classes, so "
            "nothing is told of words."
        )
    site = next((site for site in anatomy.projections if site.tower == tower), None)
    matrix = None if site is None else anatomy.output_matrix(site)
    if matrix is not None and matrix.shape[2] != embedding.shape[1]:
        return (
            f"Words of {subject.name!r} have width {embedding.shape[1]} and its residual stream "
            f"{matrix.shape[2]}, with a map between them that was not verified."
        )
    gain = norm_gain(norm, anatomy.final_norm[tower], embedding.shape[1])
    return Vocabulary(tower, embedding, norm, unembedding, gain)


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The module that a model names as its input embedding, `None` where it names none.

    That is the table of words where there are words; vision models may name their patch embedding.
    transformers raises an error for what has neither, such as a CNN, or several, such as CLIP.
    """
    find: Any = getattr(model, "get_input_embeddings", None)
    try:
        return None if find is None else find()
    except (NotImplementedError, AttributeError):
        return None


def _table(module: nn.Module | None) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _rows(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.shape[0] if isinstance(weight, Tensor) else -1
