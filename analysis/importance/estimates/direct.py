"""Direct logit attribution: what each head adds to the target's logit by itself.

`direct_logit` (Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"): what a
head writes to the residual stream, read off by the unembedding with the scale of the last norm
frozen (and that of a soft cap on the logits, where there is one). In units of the target's logit
minus that of the class `wrong`, where the data names one, else minus the mean logit of all that can
come, which takes out what all logits share.

`direct_effect_logit`: the same for ``z - z'``, with ``z'`` what an ablation puts in the head's
place: what the logit loses if later layers see the head as before. Beside `importance_logit` it
tells a direct effect from one through later heads, and self-repair (McGrath et al., 2023, "The
Hydra Effect") where the two have different signs.

Both are positive where the head speaks for the target. They are exact for logits that are a sum
over the residual stream, which is checked on every batch; elsewhere they are not measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analysis.importance.estimates.objectives import kept_settings
from analysis.importance.readings import Reading
from analysis.importance.replacements import Replacement, mean_changes, replacement_named
from analysis.importance.score_sheet import ScoreSheet
from analysis.importance.study import StudyOptions
from analysis.importance.targets import PREDICTED, Data, Reader
from analysis.progress import Progress
from analysis.scores import BatchScores
from probes.direct.direct_path import DirectContributions, contributions_to
from probes.direct.residual_path import PathError
from probes.listening import listen
from probes.replay import kept_positions

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

MEASURES = ("direct_logit", "direct_effect_logit")
_IMPOSSIBLE = -3e4
"""Logits below are masks: some models forbid tokens by the lowest number of their dtype."""
TABLE_COLUMNS = ("tower", "layer", "part", "value")


@dataclass
class Direct:
    """The study `direct`: one forward per batch and a backward along the residual stream.

    The null is the contribution to a shuffled target's logit, where there is one; else the mean
    of the layer's other heads.
    """

    options: StudyOptions
    name: str = "direct"
    reader: Reader | None = None
    replacement: Replacement = field(init=False)
    account: PartSums = field(init=False)
    progress: Progress = field(default_factory=Progress, repr=False)

    def __post_init__(self) -> None:
        self.account = PartSums()
        self.replacement = replacement_named(
            self.options.ablation, draws=self.options.draws, seed=self.options.seed
        )

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out what is read, and what stands in for a head.

        Raises:
            ValueError: there is no logit that a target could have.
        """
        self.reader = Reader(subject, data, label=self.options.label, seed=self.options.seed)
        if not self.reader.known_targets:
            vectors = self.reader.kind == "features"
            raise ValueError(
                "Direct logit attribution must have a target's logit, and "
                + ("this model gives vectors." if vectors else "the data has no targets.")
                + (" Load it with its head." if vectors else " Give `--label predicted`.")
            )
        counted = self.progress.over(self.replacement.pass_name, data)
        self.replacement.begin(subject, counted)
        self.account = PartSums()

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The contributions of every head on every example of a batch."""
        assert self.reader is not None
        reading = self.reader.reading(batch)
        sheet = ScoreSheet(batch, reading.counts, reading.unread)
        self.replacement.start(subject, batch)
        try:
            found = self._contributions(subject, batch)
        except PathError as why:
            self.account.skip(batch.size)
            return sheet.scores({(t, m): str(why) for t in subject.towers for m in MEASURES})
        variant = f"ablation={self.options.ablation}"
        for site, change in mean_changes(self.replacement, found[0], list(found[0].gradient)):
            added = [one.head_sums[site] for one in found]
            sheet.add(site, "direct_logit", "logits", added[0], _second(added))
            lost = [one.summed((change * one.gradient[site]).sum(-1)) for one in found]
            sheet.add(site, "direct_effect_logit", "logits", lost[0], _second(lost), variant)
        self.account.add(found[0], reading.counts)
        return sheet.scores(
            {(site.tower, m): why for site, why in found[0].missing.items() for m in MEASURES}
        )

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """`direct`: the whole sum, layer by layer, in logits per read.

        Columns: tower, layer, part (``heads``, ``bias``, ``mlp``, ``embedding``, ``other``,
        ``constant``, ``total``) and value. The parts add up to ``total``.
        """
        if self.account.examples != tally.examples:  # resumed, or other processes did some
            self.account = PartSums()
            for batch in self.progress.over("parts of the stream", data)():
                assert self.reader is not None
                try:
                    found = self._contributions(subject, batch)
                except PathError:
                    self.account.skip(batch.size)
                    continue
                self.account.add(found[0], self.reader.reading(batch).counts)
        return {"direct": self.account.frame()} if self.account.reads else {}

    def _contributions(self, subject: Subject, batch: Batch) -> list[DirectContributions]:
        """To the target's logit and, where there is one, to the shuffled target's."""
        assert self.reader is not None
        reader, reading = self.reader, self.reader.reading(batch)
        positions = kept_positions(subject, batch, reading.positions)
        known: list[Reading] = []

        def seen(output: Any) -> Reading:
            if not known:
                label = self.options.label
                read = reading.of(output, positions).detach() if label else torch.empty(0)
                known.append(reader.predicted(reading, batch, read))
            return known[0]

        def target(output: Any) -> Tensor:
            return logit_metric(seen(output), output, positions)

        def shuffled(output: Any) -> Tensor:
            return logit_metric(seen(output), output, positions, null=True)

        metrics = [target]
        predicted = self.options.label == PREDICTED and reader.classes > 1
        if predicted or bool((reading.shuffled >= 0).all()):
            metrics.append(shuffled)
        listens = getattr(self.replacement, "listens", False)
        heard = listen(subject, batch, self.replacement.on_call) if listens else nullcontext()
        with heard:
            return contributions_to(subject, batch, metrics, settings=kept_settings(positions))


def logit_metric(
    reading: Reading, output: Any, positions: Tensor | None = None, *, null: bool = False
) -> Tensor:
    """``[example]``: the target's logit minus the wrong one's or the mean, summed over reads.

    Args:
        positions: the positions that the logits hold, None for all.
        null: of the shuffled target instead.

    Raises:
        PathError: a read has no target.
    """
    target = reading.shuffled if null else reading.target
    if not reading.reads or bool((target < 0).any()):
        raise PathError("Every read must have a target, and some of this batch have none.")
    read = reading.of(output, positions)
    target, wrong = target.to(read.device), reading.wrong.to(read.device)
    other = read.gather(1, wrong.clamp_min(0)[:, None])[:, 0]
    can_come = read.detach() > _IMPOSSIBLE
    mean = torch.where(can_come, read, 0.0).sum(-1) / can_come.sum(-1)
    other = torch.where(wrong >= 0, other, mean)
    return reading.per_example(read.gather(1, target[:, None])[:, 0] - other)


def _second(sides: list[Tensor]) -> Tensor | None:
    return sides[1] if len(sides) > 1 else None


class PartSums:
    """Adds up the parts of the logits over batches, by tower, layer and kind of part.

    Attributes:
        examples: how many examples were counted or skipped.
        reads: how many reads were counted.
    """

    def __init__(self) -> None:
        self.examples, self.reads = 0, 0.0
        self._sums: dict[tuple[str, int, str], float] = defaultdict(float)

    def skip(self, examples: int) -> None:
        """Some examples could not be decomposed."""
        self.examples += examples

    def add(self, found: DirectContributions, counts: Tensor) -> None:
        """Count a batch of which each example has ``counts`` reads."""
        self.examples += len(counts)
        self.reads += float(counts.sum())
        for site, sums in found.head_sums.items():
            self._sums[site.tower, site.layer, "heads"] += float(sums.double().sum())
        for part, values in (("bias", found.biases), ("mlp", found.mlps)):
            for site, sums in values.items():
                self._sums[site.tower, site.layer, part] += float(sums.double().sum())
        for tower, sums in found.embedding.items():
            self._sums[tower, -1, "embedding"] += float(sums.double().sum())
        for sums in found.others.values():
            self._sums["", -1, "other"] += float(sums.double().sum())
        self._sums["", -1, "constant"] += float(found.constant.double().sum())
        self._sums["", -1, "total"] += float(found.metric.double().sum())

    def frame(self) -> pd.DataFrame:
        """One line per tower, layer and part; layer is missing where a part has none."""
        import pandas as pd

        order = sorted(self._sums, key=lambda key: (key[0] == "", key[0], key[1], key[2]))
        lines = [(*key, self._sums[key] / self.reads) for key in order]
        frame = pd.DataFrame(lines, columns=list(TABLE_COLUMNS))
        frame["layer"] = frame["layer"].astype("Int64").mask(frame["layer"] < 0)
        return frame


def direct(options: StudyOptions) -> Direct:
    """Measures ``direct_logit`` and ``direct_effect_logit``; table ``direct``."""
    return Direct(options)
