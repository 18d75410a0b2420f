"""Study `retrieval`: heads that look at what is copied, token by token, while the model writes.

Retrieval score (Wu et al., 2024): the model is to say a needle that stands somewhere in a long
prompt. A head earns 1 / |needle| each time its most attended key lies in the needle and the token
that the model writes is that key's. Trials in which the model did not say the needle do not count.
Differences from the paper: needles are random words cued by their first one; each token of the
needle counts once, so that loops cannot push a score above 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.behaviours.listening_while_writing import MostAttended, most_attended
from analysis.importance.behaviours.needles import Needle, NeedleOptions, needle_trials
from analysis.importance.behaviours.probe_sequences import (
    TOWER,
    generator_of,
    prepared,
    refuse_no_decoder,
)
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.tally import Tally

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from probes.inputs import Batch
    from probes.subject import Subject

INPUTS = "needles"
MEASURE = "retrieval"
RECALL = 0.5
"""Share of the needle that must be said for a trial to count; the paper's ROUGE-1 above 50."""
FEWEST_ACCEPTED = 5
"""Fewer trials say nothing: with a small vocabulary half a needle is sometimes said by luck."""
_BATCH_TOKENS = 8_192
_MOST_FILLER = 4_096
_SHUFFLES = 20


@dataclass
class Retrieval:
    """Retrieval score per head, 0 to 1, as the mean over accepted trials.

    Null: the same trials with the needle's tokens in another order, mean of 20: what a head earns
    that looks somewhere into the needle.

    Attributes:
        own_text: whether the filler is the data's own text (else random tokens).
        share: accepted trials among all, after `begin`.
    """

    options: NeedleOptions = field(default_factory=NeedleOptions)
    own_text: bool = True
    name: str = "retrieval"
    progress: Progress = field(default_factory=Progress, repr=False)
    share: float = float("nan")
    _scores: BatchScores | None = field(default=None, repr=False)
    _trials: list[dict[str, object]] = field(default_factory=list, repr=False)

    def begin(self, subject: Subject, data: Data) -> None:
        """Run the trials; of the data only the text is read, for filler."""
        refuse_no_decoder(subject, self.name)
        if not subject.generates:
            raise ValueError(
                f"Study 'retrieval' must let the model write, and {subject.name!r} does not "
                "generate. Leave it out of `--measures`."
            )
        filler = text_of(data, _MOST_FILLER) if self.own_text else []
        parts = []
        self._trials = []
        trials = needle_trials(subject, self.options, filler)
        stage = self.progress.stage(INPUTS, len(trials), "trials")
        for group in _groups(trials):
            seen, said = run_trials(subject, group)
            recalls = [recall(trial, row) for trial, row in zip(group, said, strict=True)]
            parts.append(retrieval_scores(seen, group, said, recalls, self.options.seed))
            self._trials += [_line(trial, r) for trial, r in zip(group, recalls, strict=True)]
            stage.step(len(group))
        stage.end()
        self._scores = BatchScores.merge(parts)
        self.share = sum(bool(line["accepted"]) for line in self._trials) / len(self._trials)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Nothing, or why nothing was measured: the data are not looked at."""
        reasons = {} if self.measured else {(TOWER, MEASURE): self._unmeasured()}
        return BatchScores.nothing([example.id for example in batch.examples], reasons)

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame:
        """Lines for the head table, if enough was retrieved; their `inputs` is the probe."""
        import pandas as pd

        assert self._scores is not None, "begin comes first"
        if not self.measured:
            return pd.DataFrame()
        tally = Tally(seed=self.options.seed)
        tally.add(self._scores)
        return tally.heads(INPUTS, {TOWER: subject.towers[TOWER].layers}).frame

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``needles``: the trials, with length, depth, recall and whether they were accepted."""
        import pandas as pd

        return {"needles": pd.DataFrame(self._trials)}

    @property
    def measured(self) -> bool:
        """Whether enough trials were accepted."""
        return round(self.share * len(self._trials)) >= min(FEWEST_ACCEPTED, len(self._trials))

    def _unmeasured(self) -> str:
        accepted = sum(bool(line["accepted"]) for line in self._trials)
        best = max(float(str(line["recall"])) for line in self._trials)
        return (
            f"The model must say more than half of the needle in {FEWEST_ACCEPTED} trials, it did "
            f"in {accepted} of {len(self._trials)} (at best {best:.0%} of it). There is hardly "
            "anything that a head could have retrieved, so retrieval is not measured."
        )


def make(options: StudyOptions) -> Retrieval:
    """The study, for `headscope.studies`."""
    return Retrieval(NeedleOptions(seed=options.seed))


def run_trials(subject: Subject, trials: Sequence[Needle]) -> tuple[MostAttended, Tensor]:
    """Let the model go on after prompts of one length, greedily.

    Returns:
        The most attended position per site, and long ``[trial step]`` what was written.
    """
    batch = prepared(subject, [trial.ids for trial in trials], [trial.name for trial in trials])
    steps = len(trials[0].wanted)
    sites = [site.site for site in subject.towers[TOWER].sites.values()]
    with most_attended(subject, sites, len(trials[0].ids)) as seen:
        # A model's own generation settings must not forbid to say a word again.
        made = subject.generate(
            batch, max_new_tokens=steps, repetition_penalty=1.0, no_repeat_ngram_size=0
        )
    return seen, made.ids.cpu()


def recall(trial: Needle, said: Tensor) -> float:
    """Share of the wanted tokens that were said, in whatever order (ROUGE-1 recall)."""
    return len(set(trial.wanted) & set(said.tolist())) / len(trial.wanted)


def retrieval_scores(
    seen: MostAttended,
    trials: Sequence[Needle],
    said: Tensor,
    recalls: Sequence[float],
    seed: int = 0,
) -> BatchScores:
    """Per-trial sums: the score where the trial is accepted, 0 / 0 where it is not.

    Args:
        seen: position of the most attended key by site, long ``[trial head step]``.
        said: long ``[trial step]``.
    """
    accepted = torch.tensor([r > RECALL for r in recalls], dtype=torch.float64)[:, None]
    columns: list[Column] = []
    sums: dict[str, list[Tensor]] = {"score": [], "null": []}
    orders = [_orders(trial, seed) for trial in trials]
    for site in sorted(seen.places):
        places = seen.places[site]
        columns += [
            Column(site.tower, site.layer, head, MEASURE, "", "share")
            for head in range(places.shape[1])
        ]
        rows = [
            _earned(trial, places[index], said[index], orders[index])
            for index, trial in enumerate(trials)
        ]
        sums["score"].append(torch.stack([row[:, 0] for row in rows]))
        sums["null"].append(torch.stack([row[:, 1:].mean(-1) for row in rows]))
    score, null = (torch.cat(parts, dim=1) * accepted for parts in sums.values())
    count = accepted.expand_as(score)
    names = tuple(trial.name for trial in trials)
    return BatchScores(tuple(columns), score, count, null, count, examples=names)


def _earned(trial: Needle, places: Tensor, said: Tensor, orders: Tensor) -> Tensor:
    """Float64 ``[head order]``: share of the wanted tokens that a head was looking at in time.

    Args:
        places: long ``[head step]``.
        orders: long ``[order word]``: ids of the needle in its own order, then in others.
    """
    offset = places - trial.start
    inside = (offset >= 0) & (offset < len(trial.needle))
    offset = offset.clamp(0, len(trial.needle) - 1)
    steps = min(said.numel(), places.shape[1])
    head = torch.arange(places.shape[0])
    found = torch.zeros(places.shape[0], len(orders), len(trial.needle), dtype=torch.bool)
    for step in range(steps):
        at = offset[:, step]
        hit = inside[:, step, None] & (orders[:, at] == said[step]).T
        found[head, :, at] |= hit
    return found[..., trial.cue :].double().sum(-1) / len(trial.wanted)


def _orders(trial: Needle, seed: int) -> Tensor:
    generator = generator_of("order", trial.name, seed)
    own = torch.tensor(trial.needle)
    count = len(own)
    others = [own[torch.randperm(count, generator=generator)] for _ in range(_SHUFFLES)]
    return torch.stack([own, *others])


def text_of(data: Data, most: int) -> list[int]:
    """Up to ``most`` token ids of the text that the language tower reads in the data."""
    found: list[int] = []
    for batch in data():
        if TOWER in batch.tokens:
            tokens = batch.tokens[TOWER]
            found += tokens.ids[tokens.has_role("text")].tolist()
        if len(found) >= most:
            break
    return [token for token in found[:most] if token >= 0]


def _groups(trials: Sequence[Needle]) -> Iterator[list[Needle]]:
    """Trials of one length together, as many as a batch should hold."""
    for length, same in groupby(trials, key=lambda trial: len(trial.ids)):
        group, size = list(same), max(1, _BATCH_TOKENS // length)
        yield from (group[first : first + size] for first in range(0, len(group), size))


def _line(trial: Needle, found: float) -> dict[str, object]:
    return {
        "trial": trial.name,
        "length": len(trial.ids),
        "depth": trial.depth,
        "start": trial.start,
        "recall": found,
        "accepted": found > RECALL,
    }
