"""Study `redundancy`: which heads do what another head does, by pattern and by output.

A head whose pattern or output another head has too can often be taken away for nothing, and two
such heads hide each other in leave-one-out. Two passes over the data: the first finds every head's
closest other head in its tower, the second judges that one pair example by example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.behaviours.activity import output_grams
from analysis.importance.redundancies.centre import centre_scores
from analysis.importance.redundancies.head_groups import GROUP_AT, group_lines, pair_lines
from analysis.importance.redundancies.similar_outputs import (
    OutputSample,
    cka,
    cka_interval,
    shuffled_cka,
)
from analysis.importance.redundancies.similar_patterns import PatternRows
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.statistics import REPLICATES
from probes.heads import Head, Site
from probes.listening import listen
from probes.replay import logits_unread

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject

PATTERN, OUTPUT = "redundancy_pattern", "redundancy_output"
_ONE_HEAD = "{} has one head, so there is no other to compare it with."


@dataclass
class Redundancy:
    """Highest similarity of each head to another one of its tower, and distance from the centre.

    Measures: ``redundancy_pattern`` (mean cosine of rows; null: the other head's weights shuffled
    among the keys that a row may read), ``redundancy_output`` (linear CKA on a sample of tokens;
    null: the other head's tokens shuffled) and ``centre_distance``. As the other head is the most
    similar one in the same data, values of many alike heads are a little too high; the null is
    not chosen that way.

    Attributes:
        group_at: heads are grouped by average linkage as long as their similarity reaches this.
    """

    seed: int = 0
    group_at: float = GROUP_AT
    replicates: int = REPLICATES
    name: str = "redundancy"
    progress: Progress = field(default_factory=Progress, repr=False)
    _rows: PatternRows | None = field(default=None, repr=False)
    _sample: OutputSample | None = field(default=None, repr=False)
    _patterns: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _alike: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find each head's closest other head."""
        heads = {
            name: sum(site.heads for site in tower.sites.values())
            for name, tower in subject.towers.items()
        }
        self._rows = rows = PatternRows(heads, self.seed)
        self._sample = sample = OutputSample(
            output_grams(subject, list(subject.towers)), seed=self.seed
        )
        lonely = {name: _ONE_HEAD.format(name) for name, count in heads.items() if count < 2}
        rows.reasons.update(lonely)
        sample.reasons.update(lonely)
        self._patterns.clear()
        self._alike.clear()
        for batch in self.progress.over("closest heads", data)():
            sample.start(batch)
            rows.start(batch)

            def both(call: AttentionCall) -> None:
                sample.listener(call)
                rows.listener(call)

            settings = logits_unread(subject, batch)
            with listen(subject, batch, both):
                subject.forward(batch, **settings)
            sample.finish_batch()
            for tower in rows.towers:
                total, count = rows.similarity(tower)
                known = self._patterns.get(tower, (torch.zeros(()), torch.zeros(())))
                self._patterns[tower] = (known[0] + total.sum(0), known[1] + count.sum())

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Pattern similarity to the closest head, and distance from the centre, per example."""
        rows = self._rows
        assert rows is not None, "begin comes first"
        z: dict[Site, list[Tensor]] = {}
        rows.start(batch)

        def hear(call: AttentionCall) -> None:
            rows.listener(call)
            z.setdefault(call.site, []).append(call.z.detach().transpose(1, 2))

        settings = logits_unread(subject, batch)
        with listen(subject, batch, hear):
            subject.forward(batch, **settings)
        names = [example.id for example in batch.examples]
        parts = [BatchScores.nothing(names, self._reasons())]
        for tower in rows.towers:
            parts.append(self._to_closest(subject, rows, tower, names))
        joined = {site: torch.cat(some, dim=1) for site, some in z.items()}
        parts.append(centre_scores(subject, batch, joined))
        return BatchScores.beside(parts)

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame:
        """``redundancy_output`` for the head table: no sum over examples, unlike the others."""
        import pandas as pd

        found = [
            self._output_lines(tower, _heads_of(subject, tower), matrix).assign(inputs=inputs)
            for tower, matrix in self._outputs().items()
        ]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``similarity``: every pair of heads of a tower; ``groups``: heads that are alike."""
        import pandas as pd

        assert self._rows is not None, "begin comes first"
        # A tower may have been given up after some batches: what those gave is not the data's.
        found = [
            ("pattern", tower, total / count)
            for tower, (total, count) in self._patterns.items()
            if tower not in self._rows.reasons
        ]
        found += [("output", *item) for item in self._outputs().items()]
        pairs, groups = [], []
        for kind, tower, matrix in found:
            heads = _heads_of(subject, tower)
            pairs.append(pair_lines(heads, matrix, kind))
            groups.append(group_lines(heads, matrix, kind, self.group_at))
        tables = {"similarity": pairs, "groups": groups}
        return {name: pd.concat(some, ignore_index=True) for name, some in tables.items() if some}

    def _outputs(self) -> dict[str, Tensor]:
        """CKA ``[head head]`` by tower, computed once."""
        assert self._sample is not None, "begin comes first"
        for tower in self._sample.towers:
            if tower not in self._alike:
                self._alike[tower] = cka(self._sample.outputs(tower))
        return self._alike

    def _to_closest(
        self, subject: Subject, rows: PatternRows, tower: str, names: list[str]
    ) -> BatchScores:
        total, count = self._patterns[tower]
        value, null, counted = rows.to_partner(tower, closest(total / count))
        columns = [
            Column(head.tower, head.layer, head.head, PATTERN, "", "cosine")
            for head in _heads_of(subject, tower)
        ]
        per_head = counted[:, None].expand_as(value)
        return BatchScores(tuple(columns), value, per_head, null, per_head, examples=tuple(names))

    def _output_lines(self, tower: str, heads: list[Head], matrix: Tensor) -> pd.DataFrame:
        import pandas as pd

        assert self._sample is not None
        outputs, partner = self._sample.outputs(tower), closest(matrix)
        examples = self._sample.examples(tower)
        low, high = cka_interval(outputs, partner, examples, self.replicates, self.seed)
        null = shuffled_cka(outputs, partner, self.seed).numpy()
        value = matrix[torch.arange(len(heads)), partner].numpy()
        return pd.DataFrame(
            {
                "tower": tower,
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                "measure": OUTPUT,
                "variant": "",
                "value": value,
                "ci_low": low,
                "ci_high": high,
                "n": len(set(examples)),
                "null_low": null,
                "null_high": null,
                "unit": "cka",
            }
        )

    def _reasons(self) -> dict[tuple[str, str], str]:
        assert self._rows is not None and self._sample is not None
        found = {(tower, PATTERN): why for tower, why in self._rows.reasons.items()}
        return found | {(tower, OUTPUT): why for tower, why in self._sample.reasons.items()}


def make(options: StudyOptions) -> Redundancy:
    """The study, for `headscope.studies`."""
    return Redundancy(seed=options.seed)


def closest(similarity: Tensor) -> Tensor:
    """Long ``[head]``: the most similar other head of each; itself where there is no other."""
    others = similarity.clone().nan_to_num(-1.0)
    if len(others) > 1:
        others.fill_diagonal_(-2.0)
    return others.argmax(1)


def _heads_of(subject: Subject, tower: str) -> list[Head]:
    sites = subject.towers[tower].sites
    return [
        Head(tower, layer, head) for layer in sorted(sites) for head in range(sites[layer].heads)
    ]
