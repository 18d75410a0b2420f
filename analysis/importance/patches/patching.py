"""Activation patching: exchange one head's output between two runs that differ in one thing.

*Noising* puts the corrupted run's output of a head into the clean run: what breaks is what the
head was needed for. *Denoising* puts the clean one into the corrupted run: what heals is what the
head suffices for. The two need not agree (Zhang and Nanda, 2024, "Towards Best Practices of
Activation Patching", section 2; Heimersheim and Nanda, 2024), so both are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.patches.both_runs import BothRuns, head_effects
from analysis.importance.patches.foreign import Strangers, strange_outputs
from analysis.importance.patches.pairs import DIRECTIONS, Direction, Pairs, is_pair, pair_up
from analysis.importance.patches.patched_positions import Positions
from analysis.importance.replaced_rows import replaced_rows
from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.touched import Place, Touched
from probes.heads import Site
from probes.inputs import InputError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

UNIT, SHARE_UNIT = "logits", "share of clean - corrupted"


@dataclass
class Patching:
    """The study of paired data: measures ``patch_noising_logit_difference`` and its kin.

    Per head, in logits: what the difference between the logits of the correct and the wrong
    answer loses (noising) or wins (denoising). With ``_share`` the same divided by clean minus
    corrupted, as a ratio of sums over pairs: about 0 for a head that does not matter; 1 for one
    that is all that matters; outside of 0 to 1 where heads work against each other. Null: the
    same with the head output of another pair.

    Attributes:
        heads: by site; all where it is None.
    """

    options: StudyOptions
    at: Positions = field(default_factory=Positions)
    directions: Sequence[Direction] = DIRECTIONS
    heads: Mapping[Site, Sequence[int]] | None = None
    null: bool = True
    progress: Progress = field(default_factory=Progress, repr=False)
    strangers: Strangers | None = None

    @property
    def name(self) -> str:
        return "patching"

    def begin(self, subject: Subject, data: Data) -> None:
        """Look for pairs, and give each another one for the null.

        Raises:
            ValueError: there are no pairs in the data, or some cannot be patched; the sentence
                names the first.
        """
        batches = list(data())
        if not any(is_pair(example) for batch in batches for example in batch.examples):
            raise ValueError(
                "Patching must have pairs: examples with `corrupt`, `correct` and `wrong`, got "
                "none. Add these fields, or choose pairs-induction, pairs-shapes or pairs-scenes."
            )
        _refuse_unfit(subject, batches, self.progress)
        self.strangers = Strangers(batches, self.options.seed) if self.null else None

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The effect of every head on every pair of a batch; other examples count for nothing."""
        rows = [row for row, example in enumerate(batch.examples) if is_pair(example)]
        ids = tuple(example.id for example in batch.examples)
        if not rows:
            return BatchScores.nothing(ids)
        pairs = pair_up(subject, [batch.examples[row] for row in rows])
        runs = BothRuns.of(subject, pairs)
        columns: list[Column] = []
        sums: list[tuple[Tensor, ...]] = []
        reasons: dict[tuple[str, str], str] = {}
        touched: dict[Place, Touched] = {}
        for direction in self.directions:
            measure = f"patch_{direction}_logit_difference"
            effects, why = self._effects(runs, direction)
            nulls = self._nulls(subject, runs, direction)
            reasons |= {(tower, measure): text for tower, text in why.items()}
            for site, effect in effects.items():
                replaced = self._rows(runs, direction, site)
                for share in (False, True):
                    name, unit = (f"{measure}_share", SHARE_UNIT) if share else (measure, UNIT)
                    chosen = self._heads(runs)[site]
                    columns += [
                        Column(site.tower, site.layer, head, name, self.at.variant, unit)
                        for head in chosen
                    ]
                    sums.append(_sums(effect, nulls.get(site), runs.gap if share else None))
                    touched[site.tower, site.layer, name, self.at.variant] = replaced
        if not columns:
            return BatchScores.nothing(ids, reasons)
        above, below, null_above, null_below = (
            _rows(torch.cat(part, dim=1), rows, len(ids)) for part in zip(*sums, strict=True)
        )
        return BatchScores(
            tuple(columns),
            above,
            below,
            null_above,
            null_below,
            examples=ids,
            reasons=reasons,
            touched=touched,
        )

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``pairs``: the logit difference of each pair, clean and corrupted."""
        import pandas as pd

        frames = []
        for batch in self.progress.over("logits of pairs", data)():
            examples = [example for example in batch.examples if is_pair(example)]
            if examples:
                frames.append(differences(subject, pair_up(subject, examples)))
        return {"pairs": pd.concat(frames, ignore_index=True)}

    def _heads(self, runs: BothRuns) -> Mapping[Site, Sequence[int]]:
        if self.heads is not None:
            return self.heads
        return {site: range(z.shape[2]) for site, z in runs.clean.z.items()}

    def _effects(
        self, runs: BothRuns, direction: Direction
    ) -> tuple[dict[Site, Tensor], dict[str, str]]:
        donor = runs.donor(direction).z
        return head_effects(runs, direction, donor, self._heads(runs), self.at, self.options.copies)

    def _rows(self, runs: BothRuns, direction: Direction, site: Site) -> Touched:
        """What exchanging each head's output changed."""
        base, donor = runs.base(direction), runs.donor(direction)
        mask = self.at.mask(runs.pairs, base, site)
        assert not isinstance(mask, str)
        found = replaced_rows(base.batch, site, base.z[site], donor.z[site], mask)
        return found.each(self._heads(runs)[site])

    def _nulls(self, subject: Subject, runs: BothRuns, direction: Direction) -> dict[Site, Tensor]:
        if not self.strangers:
            return {}
        donor = strange_outputs(
            subject, runs.base(direction), runs.pairs, self.strangers, direction
        )
        copies = self.options.copies
        return head_effects(runs, direction, donor, self._heads(runs), self.at, copies)[0]


def _refuse_unfit(subject: Subject, batches: Sequence[Batch], progress: Progress) -> None:
    unfit: dict[str, InputError] = {}
    pairs = [e for batch in batches for e in batch.examples if is_pair(e)]
    stage = progress.stage("pairs", len(pairs))
    for example in pairs:
        try:
            pair_up(subject, [example])
        except InputError as error:
            unfit[example.id] = error
        stage.step()
    stage.end()
    if unfit:
        names = ", ".join(unfit)
        raise ValueError(
            f"Every pair must fit for patching, {len(unfit)} of {len(pairs)} do not ("
            f"{names if len(names) < 100 else names[:97] + '...'}). {next(iter(unfit.values()))}"
        )


def differences(subject: Subject, pairs: Pairs) -> pd.DataFrame:
    """One line per pair: ``example clean corrupted``, correct minus wrong logit of both halves."""
    import pandas as pd

    clean, corrupted = (
        pairs.difference(subject.forward(batch))[0].numpy()
        for batch in (pairs.clean, pairs.corrupted)
    )
    return pd.DataFrame({"example": list(pairs.ids), "clean": clean, "corrupted": corrupted})


def _sums(effect: Tensor, null: Tensor | None, gap: Tensor | None) -> tuple[Tensor, ...]:
    """Numerator, denominator and those of the null, float64 ``[example head]``."""
    one = torch.ones(effect.shape[0], dtype=torch.float64) if gap is None else gap
    below = one[:, None].expand_as(effect)
    if null is None:
        return effect, below, torch.zeros_like(effect), torch.zeros_like(effect)
    return effect, below, null, below


def _rows(block: Tensor, rows: Sequence[int], examples: int) -> Tensor:
    wide = block.new_zeros(examples, block.shape[1])
    return wide.index_copy(0, torch.tensor(list(rows)), block)


def patching(options: StudyOptions) -> Patching:
    """Every head of paired data, both directions, at all positions."""
    return Patching(options)
