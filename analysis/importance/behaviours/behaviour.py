"""Study `behaviour`: previous-token, duplicate and induction heads, on random tokens said twice.

On natural text a head may look at the previous token because words go together. Random distinct
tokens, repeated once, leave nothing but the place and the repetition (Olsson et al., 2022;
TransformerLens' detectors). The probe is made for the model; the user's data are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from analysis.engine import Engine
from analysis.importance.behaviours.probe_sequences import (
    TOWER,
    beginning,
    drawn,
    ordinary_ids,
    prepared,
    refuse_no_decoder,
)
from analysis.measures import select_measures
from analysis.progress import Progress
from analysis.scores import BatchScores
from analysis.tally import Tally
from probes.listening import listen

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from probes.inputs import Batch
    from probes.subject import Subject

INPUTS = "random repeats"
"""What the head table's column `inputs` says of these lines."""
MEASURES = ("previous_token", "duplicate_token", "induction")
SECOND_BLOCK = "second block"
_MOST_WORDS = 25
"""As many as Olsson et al. (2022) repeat. Few models have only ever read shorter texts."""
_FEWEST_WORDS = 4


@dataclass
class Behaviour:
    """Weight on the previous token, on copies and on what followed them, per head.

    Variants are those of the streaming measures, and ``second block``: the mean weight over the
    queries of the repetition alone, which are the only ones that have a copy to look at. It is 1
    for a head that does nothing else. Null: the same on the uniform pattern.

    Attributes:
        words: length of the block, by default up to 25, as fits the context twice.
        seeds, sequences: random draws, and sequences of each.
    """

    words: int | None = None
    seeds: int = 4
    sequences: int = 8
    seed: int = 0
    name: str = "behaviour"
    progress: Progress = field(default_factory=Progress, repr=False)
    _scores: BatchScores | None = field(default=None, repr=False)

    def begin(self, subject: Subject, data: Data) -> None:
        """Run the probe."""
        refuse_no_decoder(subject, self.name)
        batches, parts = self.probe(subject), []
        stage = self.progress.stage(INPUTS, len(batches), "batches")
        for batch in batches:
            parts.append(_scored(subject, batch))
            stage.step()
        stage.end()
        self._scores = BatchScores.merge(parts)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Nothing: the data are not looked at."""
        return BatchScores.nothing([example.id for example in batch.examples])

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame:
        """Lines for the head table; their `inputs` is the probe, whatever the data is."""
        tally = Tally(seed=self.seed)
        tally.add(self._probed(subject))
        layers = {TOWER: subject.towers[TOWER].layers}
        return tally.heads(INPUTS, layers, MEASURES).frame

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``behaviour``: the value of every line for each seed."""
        return {"behaviour": by_seed(self._probed(subject))}

    def probe(self, subject: Subject) -> list[Batch]:
        """One batch per seed: BOS where there is one, a block of distinct tokens, the block again.

        Raises:
            ValueError: the context or the vocabulary is too small.
        """
        start, ids = beginning(subject), ordinary_ids(subject)
        length = self._block_length(subject, len(start), len(ids))
        batches = []
        for seed in range(self.seeds):
            rows, names = [], []
            for sequence in range(self.sequences):
                block = drawn(ids, length, INPUTS, self.seed, seed, sequence).tolist()
                rows.append([*start, *block, *block])
                names.append(f"{INPUTS}/{seed}/{sequence}")
            batches.append(prepared(subject, rows, names))
        return batches

    def _probed(self, subject: Subject) -> BatchScores:
        if self._scores is None:
            self.begin(subject, list)
        assert self._scores is not None
        return self._scores

    def _block_length(self, subject: Subject, start: int, ids: int) -> int:
        context = subject.context_length
        room = ids if context is None else min(ids, (context - start) // 2)
        length = min(room, _MOST_WORDS) if self.words is None else self.words
        if not _FEWEST_WORDS <= length <= room:
            raise ValueError(
                f"A block of random tokens must be {_FEWEST_WORDS} to {room} long to fit twice "
                f"into the context of {subject.name!r} ({context}) with no token twice of {ids}, "
                f"got {length}. Leave 'behaviour' out of `--measures`, or choose another length."
            )
        return length


def make(options: StudyOptions) -> Behaviour:
    """The study, for `headscope.studies`."""
    return Behaviour(seed=options.seed)


def by_seed(scores: BatchScores) -> pd.DataFrame:
    """One line per head, measure, variant and seed: tower layer head measure variant seed value."""
    import pandas as pd

    seeds = [int(name.split("/")[1]) for name in scores.examples]
    lines = []
    for seed in sorted(set(seeds)):
        mine = torch.tensor([one == seed for one in seeds])
        values = scores.numerator[mine].sum(0) / scores.denominator[mine].sum(0)
        for column, value in zip(scores.columns, values.tolist(), strict=True):
            place = {"tower": column.tower, "layer": column.layer, "head": column.head}
            what = {"measure": column.measure, "variant": column.variant}
            lines.append(place | what | {"seed": seed, "value": value})
    return pd.DataFrame(lines)


def _scored(subject: Subject, batch: Batch) -> BatchScores:
    engine = Engine(subject.layout, select_measures(MEASURES))
    engine.start_batch(batch.tokens, [example.id for example in batch.examples])
    sites = [site.site for site in subject.towers[TOWER].sites.values()]
    with listen(subject, batch, engine.listener, sites):
        subject.forward(batch)
    length = batch.tensors["input_ids"].shape[1]
    return _with_second_block(engine.finish_batch(), length // 2)


def _with_second_block(scores: BatchScores, words: int) -> BatchScores:
    """The scores, and the mean weight over the ``words`` queries that have an earlier copy.

    No token stands twice before the second block begins, so the sum over all queries is the sum
    over these.
    """
    chosen = [
        index
        for index, column in enumerate(scores.columns)
        if column.measure in ("duplicate_token", "induction") and not column.variant
    ]
    columns = [replace(scores.columns[index], variant=SECOND_BLOCK) for index in chosen]
    count = torch.full_like(scores.numerator[:, chosen], float(words))
    return BatchScores(
        (*scores.columns, *columns),
        torch.cat([scores.numerator, scores.numerator[:, chosen]], dim=1),
        torch.cat([scores.denominator, count], dim=1),
        torch.cat([scores.null_numerator, scores.null_numerator[:, chosen]], dim=1),
        torch.cat([scores.null_denominator, count], dim=1),
        examples=scores.examples,
        reasons=scores.reasons,
    )
