"""GIFT: what the question's words newly look at gets more weight while the answer is written.

*Gaze Shift-Guided Cross-modal Fusion Enhancement* (2025, arXiv 2510.22067; amazon-science/GIFT).
Stage A makes a saliency map s of the image, 0 to 1, from one layer's shifts of gaze over the
content words of the question (`analysis.vision.gaze`). Stage B, in the enhancement layers, at each
query that a token of the answer is predicted from, with image V and question Q:

    Hv = half of the heads, those with most weight on V;  a[Hv, j] <- a[Hv, j] exp(alpha s[j])
    r  = (weight of Hv on V after) / (before), one number per layer, example and query
    Ht = half of the heads, those with most weight on Q;  a[Ht, j] <- a[Ht, j] beta r
    every row is scaled back to the sum that it had

Published for LLaVA-1.5-7B: saliency from layer 11 of 32, enhancement in 12 to 22, alpha 5, beta 1
(implicit in the code). Here, layers are relative depths, and content words are those outside a
list of function words, not the nouns and so on of a tagger.

Differences from the released code: batches; where s is flat nothing is changed (it divides 0 by 0);
a question without a content word is refused (it takes the mean of nothing); the saliency comes from
the same forward where its layer lies before the enhanced ones, so that no second pass is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.vision.enhancement import enhanced
from analysis.vision.function_words import FUNCTION_WORDS
from analysis.vision.gaze import KEEP, Question, positive_shifts, questions_of, saliency
from analysis.vision.prompt_parts import prompt_parts
from analysis.vision.seeing import reading_tower, refuse_imageless
from probes.depth import sites_within
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Site
from probes.listening import listen
from probes.tap import Attached

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens

_BATCHES_KEPT = 4


@dataclass
class _Looked:
    """What is known of one batch.

    Attributes:
        gain: float ``[example position]``: ``exp(alpha s) - 1`` at image positions, else 0; None
            until the saliency layers have been read.
    """

    batch: Batch
    questions: list[Question]
    shifts: dict[Site, list[Tensor]] = field(default_factory=dict)
    gain: Tensor | None = None
    _marks: tuple[TowerTokens, dict[str, Tensor]] | None = None

    def marks(self, tokens: TowerTokens) -> dict[str, Tensor]:
        """Columns over flat positions: ``image``, ``question``, ``edited`` (bool) and ``gain``.

        The last entry stands for a position that is not known.
        """
        if self._marks is None or self._marks[0] is not tokens:
            parts = prompt_parts(tokens, self.batch)
            n = len(tokens) + 1
            found = {name: torch.zeros(n, dtype=torch.bool) for name in ("image", "question")}
            edited = parts.predicting | (parts.deciding & parts.unanswered)
            found["edited"] = torch.cat([edited, torch.zeros(1, dtype=torch.bool)])
            assert self.gain is not None
            gain = torch.zeros(n, device=self.gain.device)
            for row, question in enumerate(self.questions):
                begin = int(tokens.starts[row])
                image = torch.tensor(question.image)
                found["image"][begin + image] = True
                found["question"][begin + torch.tensor(question.positions)] = True
                gain[begin + image] = self.gain[row, image]
            device = self.gain.device
            known = {name: column.to(device) for name, column in found.items()}
            self._marks = tokens, {**known, "gain": gain}
        return self._marks[1]


@dataclass
class GiftEdit:
    """The rows of the enhancement layers of one `Gift`."""

    method: Gift
    subject: Subject
    heads: list[Site]
    sources: list[Site]
    stage: Literal["pattern"] = "pattern"
    _looked: list[_Looked] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.method.label

    @property
    def looks_ahead(self) -> bool:
        """Whether the saliency needs a forward of its own."""
        return max(site.layer for site in self.sources) >= min(site.layer for site in self.heads)

    def before(self, batch: Batch, generated: int) -> None:
        tower = self.heads[0].tower
        refuse_imageless(batch, tower, self.label)
        questions = questions_of(batch.tokens[tower], batch, "gift", self.method.function_words)
        looked = _Looked(batch, questions)
        self._looked = [looked, *self._looked][:_BATCHES_KEPT]
        if self.looks_ahead:
            with listen(self.subject, batch, self.hear, self.sources):
                self.subject.forward(batch)

    def hear(self, call: AttentionCall) -> None:
        """Keep the shifts of a saliency layer."""
        if call.step or call.moment is None or call.moment.batch is None:
            return
        looked = self._of(call.moment.batch)
        if looked is None:
            return
        looked.shifts[call.site] = [
            d[:, question.content]
            for d, question in zip(
                positive_shifts(call, looked.questions), looked.questions, strict=True
            )
        ]
        if len(looked.shifts) == len(self.sources):
            looked.gain = self._gain(looked)
            looked.shifts.clear()

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        looked = self._of(place.batch)
        if looked is None or looked.gain is None:
            raise ValueError(
                f"{self.label} must see the prompt of a batch before its tokens. Run the batch "
                "with `subject.forward` or `subject.generate` inside the `with` block."
            )
        tile = place.tile
        assert tile is not None
        marks = looked.marks(place.tokens[place.site.tower])
        where = (id(self), tile.batch.start, tile.batch.stop)
        edited = place.shared(
            (*where, "rows", tile.rows.start, tile.rows.stop),
            lambda: marks["edited"][place.query_index],
        )
        if not bool(edited.any()):
            return values
        features = place.shared(
            (*where, "keys", tile.keys), lambda: _features(marks, place.key_index)
        )
        return enhanced(values, features, edited, self.method.beta)

    def _of(self, batch: Batch) -> _Looked | None:
        return next((looked for looked in self._looked if looked.batch is batch), None)

    def _gain(self, looked: _Looked) -> Tensor:
        size = max(question.image[-1] for question in looked.questions) + 1
        device = next(iter(looked.shifts.values()))[0].device
        gain = torch.zeros(len(looked.questions), size, device=device)
        for row, question in enumerate(looked.questions):
            layers = [looked.shifts[site][row] for site in self.sources]
            found = saliency(layers, self.method.keep)
            gain[row, list(question.image)] = torch.expm1(self.method.alpha * found)
        return gain


@dataclass(frozen=True)
class Gift:
    """See the top of this file; made by `gift`."""

    alpha: float
    beta: float
    depth: tuple[float, float]
    source: float
    keep: float
    function_words: Collection[str] = field(repr=False)

    @property
    def label(self) -> str:
        return f"gift(alpha={self.alpha:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit, and the listener that sees what the question looks at."""
        tower = reading_tower(subject, "gift")
        sites = sites_within(tower, self.depth)
        for site in sites:
            if subject.layout.site(site).rule == "heads":
                raise ValueError(
                    f"gift compares the heads of one attention call, and {site} makes several. "
                    "Leave the layer out with `depth`."
                )
        layers = sorted(tower.sites)
        nearest = min(layers, key=lambda layer: abs((layer + 0.5) / tower.depth - self.source))
        edit = GiftEdit(self, subject, sites, [Site(tower.name, nearest)])
        listener = Attached(frozenset(edit.sources), on_call=edit.hear)
        return Prepared(
            edits=(edit,),
            listeners=() if edit.looks_ahead else (listener,),
            before=edit.before,
        )


def gift(
    alpha: float = 5.0,
    beta: float = 1.0,
    depth: tuple[float, float] = (0.38, 0.72),
    source: float = 0.36,
    keep: float = KEEP,
    function_words: tuple[str, ...] | None = None,
) -> Gift:
    """Enhance what the question's content words made the model look at.

    Args:
        alpha: how much the most salient image position gains: ``exp(alpha)`` before rows are
            scaled back. The published 5 is 148 times: look at what saturates.
        beta: of the question's weight, beside r.
        depth: enhancement layers by relative depth; 12 to 22 of 32 by default.
        source: relative depth of the saliency layer, the nearest one is taken; layer 11 of 32 by
            default. Up to ``depth`` it costs no forward of its own.
        keep: share of heads that make the saliency.
        function_words: words that do not count as content, in place of the English list.

    >>> gift(alpha=4).label
    'gift(alpha=4)'
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"`alpha` and `beta` of gift must be 0 or more, got {alpha:g}, {beta:g}.")
    if not 0 < keep <= 1 or not 0 <= source <= 1:
        raise ValueError(
            f"`keep` and `source` of gift must lie between 0 and 1, got {keep:g}, {source:g}."
        )
    words = FUNCTION_WORDS if function_words is None else frozenset(function_words)
    return Gift(alpha, beta, depth, source, keep, words)


def _features(marks: dict[str, Tensor], keys: Tensor) -> Tensor:
    columns = [marks["image"].float(), marks["gain"], marks["question"].float()]
    return torch.stack([column[keys] for column in columns], dim=-1)
