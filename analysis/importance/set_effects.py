"""The effect of taking a set of heads away together, for any number of sets at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from analysis.importance.effects import EFFECTS
from analysis.importance.replaced_rows import replaced_by
from analysis.statistics import REPLICATES, RatioSums
from probes.heads import Head, Site

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.comparison import Comparison
    from analysis.importance.effects import Effect
    from analysis.importance.leave_one_out import Ablation
    from analysis.importance.targets import Data
    from probes.replay import RecordedForward
    from probes.subject import Subject


@dataclass(frozen=True)
class SetEffects:
    """What a model loses without each of some sets of heads.

    Attributes:
        change: mean effect of each set; positive where the heads help.
        accuracy: share of reads where the target comes first: of the intact model, then without
            each set. NaN where there are no targets.
        rows_changed: rows of z that got other values without each set, over examples and draws; a
            row is one head at one query position, padding left out.
    """

    effect: Effect
    sets: tuple[tuple[Head, ...], ...]
    change: RatioSums
    accuracy: RatioSums
    rows_changed: tuple[int, ...]

    def frame(self) -> pd.DataFrame:
        """One line per set: heads, value, ci_low, ci_high, n, accuracy, accuracy_intact,
        rows_changed."""
        import pandas as pd

        low, high = self.change.interval()
        accuracy = self.accuracy.value
        return pd.DataFrame(
            {
                "heads": [" ".join(str(head) for head in one) for one in self.sets],
                "value": self.change.value,
                "ci_low": low,
                "ci_high": high,
                "n": self.change.n,
                "accuracy": accuracy[1:],
                "accuracy_intact": accuracy[0],
                "rows_changed": self.rows_changed,
            }
        )


def effects_of_sets(
    subject: Subject,
    data: Data,
    sets: Sequence[Sequence[Head]],
    ablation: Ablation,
    *,
    only: Callable[[str], bool] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    judged: Callable[[int], None] | None = None,
) -> SetEffects:
    """The effect of taking away each set as a whole: one forward per set, batch and draw.

    Args:
        only: says by its id whether an example counts; all by default.
        ablation: says what stands in for a head and what is read; its `begin` has been called. The
            first of its effects on the output is told.
        judged: called after each set on each batch and draw with how many examples counted.

    Raises:
        ValueError: no effect on the output was asked for; the replacement of a later layer depends
            on what an earlier one does and sets span layers.
    """
    chosen = tuple(tuple(sorted(set(one))) for one in sets)
    effect = output_effect(ablation)
    _refuse_dependent(chosen, ablation)
    assert ablation.replacement is not None
    draws = ablation.replacement.draws
    change = RatioSums.empty(len(chosen), replicates=replicates, seed=seed)
    accuracy = RatioSums.empty(1 + len(chosen), replicates=replicates, seed=seed)
    rows_changed = [0] * len(chosen)
    for batch in data():
        ids = [example.id for example in batch.examples]
        counted = np.array([only is None or only(name) for name in ids], dtype=float)[:, None]
        if not counted.any():
            continue
        recorded, comparison = ablation.record(subject, batch)
        reads = comparison.reading.counts.numpy()[:, None]
        lost, right = [[] for _ in chosen], [[] for _ in chosen]
        for draw in range(draws):
            changed = _ChangedRows(recorded, ablation, draw, torch.from_numpy(counted[:, 0] > 0))
            for number, one in enumerate(chosen):
                rows_changed[number] += changed.of(one)
                output = _output(recorded, one, ablation, draw)
                lost[number].append(_lost(comparison, output, effect.name, one))
                right[number].append(_correct(comparison, output))
                if judged is not None:
                    judged(int(counted.sum()))
        if chosen:
            change.add(
                ids,
                _means(lost).numpy() * counted,
                np.repeat(reads * counted, len(chosen), 1),
            )
        known = reads * _targets_known(comparison) * counted
        correct = _means([[_correct(comparison, recorded.output)], *right]).numpy() * counted
        accuracy.add(ids, correct, np.repeat(known, 1 + len(chosen), 1))
    return SetEffects(effect, chosen, change, accuracy, tuple(rows_changed))


def head_counts(subject: Subject) -> dict[Site, int]:
    """Heads of every attention layer."""
    return {site.site: site.heads for site in subject.layout.sites}


def output_effect(ablation: Ablation) -> Effect:
    """The first of an ablation's effects that is told by the model's output.

    Raises:
        ValueError: there is none.
    """
    for effect in ablation.effects:
        if effect.needs != "block":
            return effect
    raise ValueError(
        "Heads of several layers must be judged by an effect on the output, and none was asked "
        "for. Add one with `--effect`, such as cross_entropy, jsd or cosine."
    )


def _output(recorded: RecordedForward, heads: Sequence[Head], ablation: Ablation, draw: int) -> Any:
    """The model's output without the heads, in one draw of what stands in for them."""
    by_site: dict[Site, list[int]] = {}
    for head in heads:
        if head.site in recorded.z:  # an input without an image does not reach a vision tower
            by_site.setdefault(head.site, []).append(head.head)
    if not by_site:
        return recorded.output
    assert ablation.replacement is not None
    changes = {}
    for site, mine in by_site.items():
        z = recorded.z[site]
        values = ablation.replacement.values(recorded, site, draw)
        changes[site] = (mine, values.expand(z.shape)[:, :, mine].to(z.dtype))
    return recorded.run(changes)


class _ChangedRows:
    """Counts the rows that a set changes in one batch and draw; each layer is looked at once."""

    def __init__(
        self, recorded: RecordedForward, ablation: Ablation, draw: int, counted: Tensor
    ) -> None:
        assert ablation.replacement is not None
        self._recorded, self._counted = recorded, counted
        self._replacement, self._draw = ablation.replacement, draw
        self._by_site: dict[Site, list[int]] = {}

    def of(self, heads: Sequence[Head]) -> int:
        """Rows of all heads of the set that the batch reaches."""
        there = [head for head in heads if head.site in self._recorded.z]
        return sum(self._of_site(head.site)[head.head] for head in there)

    def _of_site(self, site: Site) -> list[int]:
        if site not in self._by_site:
            values = self._replacement.values(self._recorded, site, self._draw)
            found = replaced_by(self._replacement, self._recorded, site, values, self._counted)
            self._by_site[site] = found.changed.sum(0).tolist()
        return self._by_site[site]


def _means(draws: Sequence[Sequence[Tensor]]) -> Tensor:
    """Float64 ``[example set]``: of each set the mean over its draws of ``[example]``."""
    return torch.stack([torch.stack(list(one)).mean(0) for one in draws], dim=1)


def _lost(comparison: Comparison, output: Any, effect: str, heads: Sequence[Head]) -> Tensor:
    """Float64 ``[example]``; where each tower has a vector of its own, the mean over the set's."""
    towers = sorted({head.tower for head in heads}) or [""]
    if comparison.reading.kind != "features":
        towers = towers[:1]
    changes = [comparison.changes(output, tower)[effect][:, 0] for tower in towers]
    return torch.stack(changes).mean(0)


def _correct(comparison: Comparison, output: Any) -> Tensor:
    """Float64 ``[example]``: reads of each example where the target comes first."""
    reading = comparison.reading
    if not _targets_known(comparison):
        return torch.zeros(reading.examples, dtype=torch.float64)
    objective = EFFECTS["accuracy"].objective
    assert objective is not None
    read = reading.of(output, comparison.recorded.positions)
    return reading.per_example(objective(read, reading.target[:, None], reading.wrong)[:, 0]).cpu()


def _targets_known(comparison: Comparison) -> bool:
    reading = comparison.reading
    return reading.kind != "features" and bool((reading.target >= 0).all())


def _refuse_dependent(sets: Sequence[Sequence[Head]], ablation: Ablation) -> None:
    assert ablation.replacement is not None
    layers = max((len({head.site for head in one}) for one in sets), default=0)
    if layers > 1 and not ablation.replacement.joint:
        raise ValueError(
            f"Heads of several layers must be replaced by what does not depend on earlier layers, "
            f"and {ablation.replacement.name!r} does. Choose `--ablation mean`, zero or resample."
        )
