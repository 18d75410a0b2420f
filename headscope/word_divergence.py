"""T-VHD of every word that a model wrote: how much its heads depend on the image there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(frozen=True)
class WordDivergence:
    """A word of an answer (what stands between spaces).

    Attributes:
        start, end: its characters in the answer without the spaces around it.
        t_vhd: mean T-VHD of its tokens, 0 and up; see `analysis.vision.divergence`.
    """

    text: str
    start: int
    end: int
    t_vhd: float


def word_divergence(subject: Subject, batch: Batch, ids: Tensor) -> list[WordDivergence]:
    """T-VHD of the words that stand behind the one prompt of a batch.

    Args:
        ids: long ``[1 token]`` as `Subject.generate` gives them.

    Raises:
        InputError: the batch or the model has no image that can be taken away.
    """
    from analysis.vision.head_divergence import answer_reads, head_divergence, t_vhd
    from analysis.vision.spaced_words import spaced_words
    from analysis.vision.words import token_spans
    from probes.written_text import continued

    whole = continued(subject, batch, ids)
    reads = answer_reads(whole)
    if not len(reads):
        return []
    values = t_vhd(head_divergence(subject, whole, reads)).tolist()
    read = whole.tensors["input_ids"][reads.example, reads.position].tolist()
    text, spans = token_spans(subject.tokenizer, read)
    return [
        WordDivergence(
            word.text,
            word.start,
            word.end,
            sum(values[token] for token in word.tokens) / len(word.tokens),
        )
        for word in spaced_words(text, spans)
    ]
