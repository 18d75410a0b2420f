"""Which heads turn a word into the next one of its sequence, by their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.importance.circuits.circuits import mismatched
from analysis.importance.circuits.data_free import Line
from analysis.importance.circuits.head_to_words import through_norm, value_and_output
from analysis.importance.circuits.ordinals import FEWEST_PAIRS, Succession, successions
from analysis.statistics import Array, RatioSums, null_interval
from probes.heads import Site
from probes.weights.first_block import effective_embedding
from probes.weights.head_weights import HeadWeights
from probes.weights.vocabulary import Vocabulary

if TYPE_CHECKING:
    from probes.subject import Subject


def successor_problem(subject: Subject, vocabulary: Vocabulary) -> str:
    """Why there are no successor scores, empty if there are."""
    known = 0 if subject.tokenizer is None else len(successions(subject.tokenizer))
    if known < FEWEST_PAIRS:
        return (
            f"The tokenizer knows {known} ordinal words with their successors as single tokens, "
            f"and successor_score takes at least {FEWEST_PAIRS}."
        )
    if vocabulary.tower != "language":
        return "Words cannot be run alone through a decoder that reads an encoder."
    return ""


def successor_lines(
    subject: Subject, vocabulary: Vocabulary, weights: Mapping[Site, HeadWeights], *, seed: int
) -> list[Line]:
    """Successor score of every head.

    Each word's first embedding and MLP output go through a head's norm, ``W_V`` and ``W_O`` and
    the unembedding. A line's ``n`` counts words; its interval resamples them; its null is ``W_V``
    of one head with ``W_O`` of another, in the same layer.
    """
    pairs = successions(subject.tokenizer)
    asked = torch.tensor([pair.members[pair.token] for pair in pairs])
    stream = effective_embedding(subject, vocabulary.tower, asked)
    lines: list[Line] = []
    for site, one in weights.items():
        own, null = _wins(vocabulary, one, through_norm(subject, one, stream), pairs)
        lines += _lines(site, own, null, pairs, seed)
    return lines


def _wins(
    vocabulary: Vocabulary, weights: HeadWeights, reads: Tensor, pairs: Sequence[Succession]
) -> tuple[Array, list[float]]:
    """Float64 ``[pair head]``: whether the successor wins; and the shares of mismatched heads."""
    words = torch.tensor(sorted({token for pair in pairs for token in pair.members}))
    place = {int(word): number for number, word in enumerate(words)}
    matrices = list(value_and_output(weights))
    values = [reads.to(value.device) @ value + bias for value, bias, _ in matrices]

    def wins(value: Tensor, output: Tensor) -> list[float]:
        logits = vocabulary.logits(value @ output, words).cpu()
        return [_succeeds(row, pair, place) for row, pair in zip(logits, pairs, strict=True)]

    own = [wins(value, parts[2]) for value, parts in zip(values, matrices, strict=True)]
    null = [
        float(np.mean(wins(values[one], matrices[other][2])))
        for one, other in mismatched(weights.heads, weights.kv_of_head)
    ]
    return np.array(own, dtype=np.float64).T, null


def _succeeds(logits: Tensor, pair: Succession, place: Mapping[int, int]) -> float:
    among = logits[[place[member] for member in pair.members]]
    return float(int(among.argmax()) == pair.successor)


def _lines(
    site: Site, own: Array, null: Sequence[float], pairs: Sequence[Succession], seed: int
) -> list[Line]:
    sums = RatioSums.empty(own.shape[1], seed=seed)
    sums.add([f"{pair.sequence} {pair.word}" for pair in pairs], own, np.ones_like(own))
    low, high = sums.interval()
    ends = null_interval(np.array(null, dtype=np.float64))
    return [
        Line(
            site,
            head,
            "successor_score",
            "",
            "share",
            float(value),
            *ends,
            ci_low=float(low[head]),
            ci_high=float(high[head]),
            n=len(pairs),
        )
        for head, value in enumerate(sums.value)
    ]
