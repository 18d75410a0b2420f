"""What the weights of each head say without any data: copying, norms, composition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from analysis.importance.circuits.circuits import copying, factored_norm, mismatched
from analysis.importance.circuits.composition import compositions
from analysis.importance.circuits.data_free import Line, nothing_scored, table_of
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.statistics import null_interval
from probes.heads import Site
from probes.inputs import InputError
from probes.load_error import LoadError
from probes.weights.head_weight_search import head_weights
from probes.weights.head_weights import HeadWeights
from probes.weights.vocabulary import Vocabulary, vocabulary_of

if TYPE_CHECKING:
    import pandas as pd

    from analysis.scores import BatchScores
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

SIGNED_SHARE = "signed share of eigenvalues"
_MOVING = ("value", "output", "stream")
Found = tuple[Tensor, Sequence[float]]
"""Float ``[head]`` and draws of the null."""


@dataclass
class Weights:
    """The study `weights`: a table line per head, with no number of examples and no interval.

    Measures, each a number of the head's weights alone. ``W_Q``, ``W_K`` and ``W_V`` are taken
    with the gains of the norm that they read through (and its centring, for LayerNorm), ``W_O``
    with what stands between it and the stream (LayerScale, a norm). Scales of norms, which depend
    on the token, biases and positions are left out. Under GQA each query head has its group's
    ``W_K`` and ``W_V``.

    - ``copying``, variant ``residual``: what share of the eigenvalues of ``W_V W_O`` is positive,
      -1 to 1: 1 where the head adds to the stream what it reads there, -1 where it takes it away.
      Variant ``vocabulary``: of ``W_E W_V W_O W_U``, from words to words, with the gains of the
      final norm (Elhage et al., 2021). Null: ``W_V`` of one head with ``W_O`` of another.
    - ``ov_norm``, ``qk_norm``: Frobenius norms of ``W_V W_O`` and ``W_Q W_K^T``, the latter
      without the scale of the scores and for a key at the query's own place. Null: mismatched.
    - ``q_composition``, ``k_composition``, ``v_composition``: the largest over all earlier heads
      of ``|W_OV^1 W_QK^2| / (|W_OV^1| |W_QK^2|)`` and its like for keys and values, 0 to 1
      (Elhage et al., 2021, "Q-, K-, and V-composition"). Null: the earlier head's output turned
      at random, which for one pair gives ``1 / sqrt(model_width)``. Every pair is in the table
      ``composition`` of the run.
    - ``weight_importance``: ``|W_V W_O| |W_Q W_K^T|``, large where a head both tells positions
      apart and writes much. The product is ours; it estimates, and causes nothing. Null:
      mismatched pairs in both.
    """

    options: StudyOptions
    name: str = "weights"
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    _lines: list[Line] = field(default_factory=list)
    _pairs: pd.DataFrame | None = None

    def begin(self, subject: Subject, data: Data) -> None:
        """Find the weights; all numbers are known afterwards."""
        try:
            weights = head_weights(subject)
        except (
            LoadError,
            InputError,
        ):  # no sample of our own suits the model: the user's first batch does
            weights = head_weights(subject, next(iter(data())))
        vocabulary = vocabulary_of(subject)
        self._lines = []
        for site, one in weights.items():
            cross = subject.layout.site(site).cross
            for measure, variant, unit, found in _of_layer(one, vocabulary, cross=cross):
                if isinstance(found, str):
                    self.reasons[site.tower, measure] = found
                    continue
                self._lines += _lines(site, measure, variant, unit, *found)
        self._pairs, summaries, reasons = compositions(subject, weights, seed=self.options.seed)
        self._lines += summaries
        self.reasons.update(reasons)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Nothing of the batch; why something was not measured."""
        return nothing_scored(batch, self.reasons)

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame:
        """Lines for the head table, ``n`` 0; their `inputs` is ``weights``, whatever the data."""
        return table_of(self._lines, inputs="weights")

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``composition``: every pair of heads."""
        assert self._pairs is not None, "`begin` comes before `finish`"
        return {"composition": self._pairs}


def _of_layer(
    weights: HeadWeights, vocabulary: Vocabulary | str, *, cross: bool
) -> Iterator[tuple[str, str, str, Found | str]]:
    """Measure, variant, unit and its numbers or the reason why there are none."""
    ov, qk = _ov_problem(weights), _qk_problem(weights)
    tower = weights.site.tower
    moved = ov
    if cross and not ov:
        moved = f"Heads of {tower} read another stream than they write to, so nothing is copied."
    yield "copying", "residual", SIGNED_SHARE, moved or _copying(weights, None)
    if isinstance(vocabulary, str):
        yield "copying of words", "vocabulary", SIGNED_SHARE, vocabulary
    elif vocabulary.tower != tower:
        why = f"Words come in and out through {vocabulary.tower}, not through {tower}."
        yield "copying of words", "vocabulary", SIGNED_SHARE, why
    else:
        found = moved or _copying(weights, vocabulary.between)
        yield "copying", "vocabulary", SIGNED_SHARE, found
    yield "ov_norm", "", "norm", ov or _ov_norm(weights)
    yield "qk_norm", "", "norm", qk or _qk_norm(weights)
    if ov or qk:
        yield "weight_importance", "", "norm", ov or qk
        return
    (moves, moves_null), (looks, looks_null) = _ov_norm(weights), _qk_norm(weights)
    null = [a * b for a, b in zip(moves_null, looks_null, strict=True)]
    yield "weight_importance", "", "norm", (moves * looks, null)


def _ov_problem(weights: HeadWeights) -> str:
    """Why there is no OV circuit into the stream, empty if there is one."""
    return next((weights.missing[p] for p in _MOVING if p in weights.missing), "")


def _qk_problem(weights: HeadWeights) -> str:
    if weights.normed:
        return (
            f"Queries or keys pass a norm ({weights.normed}) after their projection, so the size "
            "of their weights says nothing and their scores are not bilinear."
        )
    return next((weights.missing[p] for p in ("query", "key") if p in weights.missing), "")


def _copying(weights: HeadWeights, between: Tensor | None) -> Found | str:
    read, write = _value(weights), _output(weights)
    if read.shape[1] != write.shape[2]:
        return (
            f"A head of {weights.site} reads width {read.shape[1]} and writes {write.shape[2]}, "
            "so nothing can be copied."
        )
    own = copying(write, read, between)
    pairs = mismatched(weights.heads, weights.kv_of_head)
    drawn = [copying(write[j : j + 1], read[i : i + 1], between)[0].item() for i, j in pairs]
    return own, drawn


def _ov_norm(weights: HeadWeights) -> Found:
    read, write = _value(weights), _output(weights)
    pairs = mismatched(weights.heads, weights.kv_of_head)
    drawn = [factored_norm(read[i], write[j]).item() for i, j in pairs]
    return factored_norm(read, write), drawn


def _qk_norm(weights: HeadWeights) -> Found:
    assert weights.query is not None and weights.key is not None
    query = weights.query.stream_matrix()
    key = weights.per_query_head(weights.key.stream_matrix())
    pairs = mismatched(weights.heads, weights.kv_of_head)
    drawn = [factored_norm(query[i], key[j].mT).item() for i, j in pairs]
    return factored_norm(query, key.mT), drawn


def _value(weights: HeadWeights) -> Tensor:
    assert weights.value is not None
    return weights.per_query_head(weights.value.stream_matrix())


def _output(weights: HeadWeights) -> Tensor:
    output = weights.stream_output()
    assert output is not None
    return output


def _lines(
    site: Site, measure: str, variant: str, unit: str, values: Tensor, null: Sequence[float]
) -> list[Line]:
    low, high = null_interval(np.array(null, dtype=np.float64))
    return [
        Line(site, head, measure, variant, unit, value, low, high)
        for head, value in enumerate(values.tolist())
    ]


def weights(options: StudyOptions) -> Weights:
    """Measures of the weights alone."""
    return Weights(options)
