"""The study of vision-aware heads: what every head gives out with the image and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from analysis.hallucination.vocabulary import Vocabulary
from analysis.importance.readings import ReadingError
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.vision.head_divergence import (
    TOWER,
    Diverged,
    Reads,
    answer_reads,
    head_divergence,
    t_vhd,
    t_vhd_by_k,
)
from analysis.vision.kept_words import WORDS, WordKeeper
from analysis.vision.read_sums import summed
from analysis.vision.token_table import T_VHD, comparison
from analysis.vision.words import HALLUCINATED, OTHER, TRUE, Word, words
from probes.heads import Site
from probes.image_removal import HOWS, How
from probes.inputs import InputError
from probes.written_text import continued

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

MEASURES = {
    "vhd": ("vhd", "norm of z"),
    "vhd_relative": ("relative", "share of norm"),
    "vhd_cosine": ("cosine", "1 - cosine"),
    "vhd_outlier": ("outlier", "share of tokens"),
}
"""Measure -> field of `Diverged` and unit."""
MAX_NEW_TOKENS = 64
FIRST = "first_token"
Answers = Literal["auto", "own", "given"]


@dataclass
class Vhd:
    """VHD of every head of the language tower, per group of tokens, and T-VHD of every token.

    Measures, each averaged over tokens of answers, at the position that predicts the token:
    ``vhd`` (`divergence`), ``vhd_relative``, ``vhd_cosine``, and ``vhd_outlier``, the share of
    tokens at which the outlier rule of VHR would leave the head out (``words=all`` only). Variants
    ``words=``: ``all``, ``first_token``, and where the data says what is in the image
    ``true_object``, ``hallucinated_object``, ``other``. The null is the mean of the other heads of
    the layer: VHR too takes a layer's heads by comparing them with each other, and no image that
    is as good as none exists to draw a null from.

    Attributes:
        how: how the image is taken away, as `probes.image_removal.without_image` knows it.
        answers: ``given`` reads the answers of the data, ``own`` what the model writes, greedily;
            ``auto`` its own where the data names objects or lacks answers, so that there are
            hallucinated words to look at.
        k: heads per layer in T-VHD; None for a quarter of them.
        max_new_tokens: most tokens of an own answer.
        vocabulary: the objects that are looked for; by default all that the data names.
        kept: examples of whose words VHD of every head is kept, see `KeptWords`; whoever runs the
            study may set it before `finish`.
    """

    how: How = "delete"
    answers: Answers = "auto"
    k: int | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    seed: int = 0
    vocabulary: Vocabulary | None = None
    kept: tuple[str, ...] = ()
    name: str = "vhd"
    section: str = "vision"
    progress: Progress = field(default_factory=Progress, repr=False)
    _own: bool = field(default=False, repr=False)
    _tokens: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    _words: WordKeeper | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise ValueError(f"`how` must be one of {', '.join(HOWS)}, got {self.how!r}.")
        if self.answers not in ("auto", "own", "given"):
            raise ValueError(f"`answers` must be auto, own or given, got {self.answers!r}.")

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out which objects there are to be named, and whose answers are read.

        Raises:
            ValueError: the subject does not read images and text.
        """
        if subject.kind != "vision-language" or TOWER not in subject.towers:
            raise ValueError(
                f"VHD compares heads with and without the image, and {subject.name!r} is a "
                f"{subject.kind} model. Choose a model that reads images and text."
            )
        self._tokens.clear()
        objects: dict[str, None] = {}
        answered = True
        for batch in self.progress.over("objects and answers", data)():
            for example in batch.examples:
                objects.update(dict.fromkeys(example.objects))
                answered &= example.answer is not None
        self._own = self.answers == "own"
        if self.answers == "auto":
            self._own = subject.generates and (bool(objects) or not answered)
        if self.vocabulary is None and objects:
            self.vocabulary = Vocabulary.of(objects)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Sums over the tokens of each example's answer.

        Raises:
            ReadingError: an example has no image or no answer, or the model needs its image.
        """
        _, reads, said, found = self._look(subject, batch)
        groups = self._groups(batch, reads, said)
        columns: list[Column] = []
        sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for measure, (name, unit) in MEASURES.items():
            for group, chosen in groups.items():
                if measure == "vhd_outlier" and group != "all":
                    continue
                for site, layer in found.items():
                    values = getattr(layer, name).double()
                    heads = range(values.shape[1])
                    variant = f"words={group}"
                    columns += [
                        Column(site.tower, site.layer, h, measure, variant, unit) for h in heads
                    ]
                    sums.append(summed(values, reads.example, chosen, batch.size))
        ids = tuple(example.id for example in batch.examples)
        value, count, null, null_count = (torch.cat(p, 1) for p in zip(*sums, strict=True))
        return BatchScores(tuple(columns), value, count, null, null_count, examples=ids)

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``tokens``: T-VHD of every token; ``token_groups``: `comparison` of object words;
        ``words``: those of the kept examples.

        Examples that another process scored before an interruption are looked at again.
        """
        import pandas as pd

        rows = []
        keeper = self._words = WordKeeper(subject.towers[TOWER].layers)
        for batch in self.progress.over("tokens", data)():
            if any(example.id not in self._tokens for example in batch.examples):
                self._look(subject, batch)
            rows += [row for example in batch.examples for row in self._tokens[example.id]]
            self._keep_words(subject, batch, keeper)
        tokens = pd.DataFrame(rows)
        tables = {"tokens": tokens, **({WORDS: keeper.frame(self.kept)} if self.kept else {})}
        if self.vocabulary is None or tokens.empty:
            return tables
        return {**tables, "token_groups": comparison(tokens, seed=tally.seed)}

    def save(self, folder: Path) -> None:
        """VHD of every head at the kept words."""
        if self._words is not None:
            self._words.save(folder, self.kept)

    def _keep_words(self, subject: Subject, batch: Batch, keeper: WordKeeper) -> None:
        """Those of the kept examples, which are read once more: all VHD would be too much."""
        mine = [example for example in batch.examples if example.id in self.kept]
        if mine:
            scored = subject.prepare(examples=mine)
            read, reads, said, found = self._look(subject, scored)
            total = t_vhd(found, self.k)
            keeper.keep(subject.tokenizer, scored, read, reads, said, found, total)

    def _look(
        self, subject: Subject, batch: Batch
    ) -> tuple[Batch, Reads, list[Word], dict[Site, Diverged]]:
        """The batch with the answers, their tokens, what these are, and what each layer's heads
        do there."""
        try:
            whole = self._answered(subject, batch)
            reads = answer_reads(whole)
            found = head_divergence(subject, whole, reads, self.how, self.seed)
        except InputError as error:
            raise ReadingError(str(error), error.example_id) from error
        said: list[Word] = []
        total = t_vhd(found, self.k)
        by_k = t_vhd_by_k(found)
        ids = whole.tensors["input_ids"].cpu()[reads.example, reads.position]
        for row, example in enumerate(whole.examples):
            mine = (reads.example == row).nonzero()[:, 0]
            objects = batch.examples[row].objects
            vocabulary = self.vocabulary if objects else None
            its = words(subject.tokenizer, ids[mine].tolist(), objects, vocabulary)
            said += its
            self._tokens[example.id] = [
                {
                    "example": example.id,
                    "token": number,
                    "position": int(reads.position[read]),
                    "text": word.text,
                    "group": word.group,
                    "kind": word.kind,
                    "mention": word.mention,
                    T_VHD: float(total[read]),
                    **{f"{T_VHD}_top{k}": float(value[read]) for k, value in by_k.items()},
                }
                for number, (word, read) in enumerate(zip(its, mine.tolist(), strict=True))
            ]
        return whole, reads, said, found

    def _answered(self, subject: Subject, batch: Batch) -> Batch:
        """The batch with the answers that are to be read.

        Raises:
            ReadingError: an example has no answer.
        """
        if self._own:
            if any(start >= 0 for start in batch.answer_starts):
                batch = subject.prepare(examples=batch.examples, answers=False)
            written = subject.generate(batch, self.max_new_tokens)
            return continued(subject, batch, written.ids)
        starts = batch.answer_starts or (-1,) * batch.size
        for example, start in zip(batch.examples, starts, strict=True):
            if start < 1:
                raise ReadingError(
                    f"Example {example.id!r} must have an answer whose words are read, it has "
                    "none. Add it, or let the model write.",
                    example.id,
                )
        return batch

    def _groups(self, batch: Batch, reads: Reads, said: Sequence[Word]) -> dict[str, Tensor]:
        """Bool ``[read]`` for each group of tokens."""
        first = torch.ones(len(reads), dtype=torch.bool)
        first[1:] = reads.example[1:] != reads.example[:-1]
        groups = {"all": torch.ones(len(reads), dtype=torch.bool)}
        if self.vocabulary is not None:
            for name in (TRUE, HALLUCINATED, OTHER):
                groups[name] = torch.tensor([w.group == name for w in said], dtype=torch.bool)
        return {**groups, FIRST: first}


def make(options: StudyOptions) -> Vhd:
    """The study, for `headscope.studies`."""
    return Vhd(
        cast("How", options.image_removal), cast("Answers", options.answers), seed=options.seed
    )
