"""What each head does to words by itself: say them again, say the opposite, say the next one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.circuits.data_free import nothing_scored, table_of
from analysis.importance.circuits.head_to_words import through_norm, value_and_output
from analysis.importance.circuits.successors import successor_lines, successor_problem
from analysis.importance.circuits.word_places import Places, text_places
from analysis.importance.score_sheet import ScoreSheet
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.scores import BatchScores
from probes.heads import Site
from probes.inputs import InputError
from probes.load_error import LoadError
from probes.weights.first_block import first_site, stream_after_first_block
from probes.weights.head_weight_search import head_weights
from probes.weights.head_weights import HeadWeights
from probes.weights.vocabulary import Vocabulary, vocabulary_of

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

BEST = 5
_MEASURES = ("copy_score", "negative_copy_score", "successor_score")
_TOKENS_AT_ONCE = 256


@dataclass
class VocabularyRoles:
    """The study `vocabulary_roles`: a head's output matrix after its value matrix, read as words.

    Measures, all of heads behind the first block (which has not seen the words before it):

    - ``copy_score``, 0 to 1: share of text positions at which the head, if it attended to that
      position alone, would bring the token there into the top 5. The stream after the first
      block goes through the head's norm, ``W_V`` and ``W_O``, the final norm and the unembedding.
      ``negative_copy_score`` is the same with the head's output sign turned. Null: another token
      of the same example instead of the position's own.
      Source: Wang et al., "Interpretability in the Wild" (2022), the copy score of name movers
      and negative name movers. They take positions of names only, and the norm of the second block;
      with its gains folded into each head's matrices, as theirs are, that is the head's own norm.
    - ``successor_score``, 0 to 1: share of ordinal words (numbers, months, days, letters ...)
      whose successor gets the highest logit among all words of its sequence, through first
      embedding and MLP, the head's ``W_V W_O`` and the unembedding. ``n`` counts words, the
      interval resamples them. Null: ``W_V`` of one head with ``W_O`` of another.
      Source: Gould et al., "Successor Heads" (2024), who score the share of words of which
      succession occurs; that it has to win within its sequence, and the list, are ours.
    """

    options: StudyOptions
    name: str = "vocabulary_roles"
    vocabulary: Vocabulary | None = None
    weights: dict[Site, HeadWeights] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find the weights and both ends of the vocabulary.

        Raises:
            ValueError: the model has no words to tell of.
        """
        found = vocabulary_of(subject)
        if isinstance(found, str):
            raise ValueError(f"{found} Choose a language model for `vocabulary_roles`.")
        self.vocabulary = found
        try:
            every = head_weights(subject)
        except (LoadError, InputError):
            every = head_weights(subject, next(iter(data())))
        first = first_site(subject, found.tower)
        self.weights, self.reasons = {}, {}
        for site, one in every.items():
            if site.tower != found.tower or site == first:
                continue
            problem = _problem(one)
            if not problem:
                self.weights[site] = one
                continue
            self.reasons.update({(site.tower, measure): problem for measure in _MEASURES})
        problem = successor_problem(subject, found)
        if problem:
            self.reasons[found.tower, "successor_score"] = problem

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Copy scores of one batch, per example."""
        vocabulary = self._known()
        try:
            stream = stream_after_first_block(subject, batch, vocabulary.tower)
            places = text_places(batch, vocabulary.tower, stream.shape)
        except ValueError as why:
            copies = [(vocabulary.tower, measure) for measure in _MEASURES[:2]]
            return nothing_scored(batch, self.reasons | dict.fromkeys(copies, str(why)))
        counts = torch.bincount(places.example, minlength=batch.size)
        sheet = ScoreSheet(batch, counts)
        for site, weights in self.weights.items():
            reads = through_norm(subject, weights, stream[places.row, places.position])
            for name, sign in (("copy_score", 1.0), ("negative_copy_score", -1.0)):
                own, other = self._hits(weights, reads, sign, places)
                sheet.add(
                    site,
                    name,
                    "share",
                    _summed(own, places.example, batch.size),
                    null=_summed(other, places.example, batch.size),
                )
        return sheet.scores(self.reasons)

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame | None:
        """Lines for the head table with the successor scores, on the words of the vocabulary."""
        vocabulary = self._known()
        if (vocabulary.tower, "successor_score") in self.reasons:
            return None
        found = successor_lines(subject, vocabulary, self.weights, seed=self.options.seed)
        return table_of(found, inputs="ordinal words")

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """No tables."""
        return {}

    def _known(self) -> Vocabulary:
        assert self.vocabulary is not None, "`begin` comes before `score`"
        return self.vocabulary

    def _hits(
        self, weights: HeadWeights, reads: Tensor, sign: float, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Float ``[read head]``: own token among the best, and another token of the example."""
        own = torch.zeros(reads.shape[0], weights.heads)
        other = torch.zeros_like(own)
        vocabulary = self._known()
        best = min(BEST, vocabulary.words)
        for head, (value, bias, output) in enumerate(value_and_output(weights)):
            reads = reads.to(value.device)
            for start in range(0, reads.shape[0], _TOKENS_AT_ONCE):
                part = slice(start, start + _TOKENS_AT_ONCE)
                written = sign * ((reads[part] @ value + bias) @ output)
                top = vocabulary.logits(written).topk(best, dim=-1).indices.cpu()
                own[part, head] = (top == places.token[part, None]).any(1).float()
                other[part, head] = (top == places.other[part, None]).any(1).float()
        return own, other


def _problem(weights: HeadWeights) -> str:
    wanted = ("value", "output", "stream")
    return next((weights.missing[part] for part in wanted if part in weights.missing), "")


def _summed(hits: Tensor, example: Tensor, examples: int) -> Tensor:
    """Float64 ``[example head]``."""
    total = torch.zeros(examples, hits.shape[1], dtype=torch.float64)
    return total.index_add(0, example, hits.double())


def vocabulary_roles(options: StudyOptions) -> VocabularyRoles:
    """Copy, negative copy and successor scores."""
    return VocabularyRoles(options)
