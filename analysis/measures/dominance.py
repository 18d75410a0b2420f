"""Text or image: how much weight a token of text gets for each token of the image.

Modality Dominance Index and Attention Efficiency Index (*When Language Overrules*, 2025,
arXiv 2508.10552). With the weight A_T on text keys T and A_O on image keys O of the queries that
decide what is said (each position that predicts a token of the output; without an output, the text
behind the image), summed over these queries, and |T|, |O| the number of keys that they may read:

    MDI = (A_T / |T|) / (A_O / |O|)      P = A_T / (A_T + A_O)      Q = |T| / (|T| + |O|)
    AEI = P / Q = MDI / (1 + Q (MDI - 1))

The last line holds for each example. Over examples a ratio is the ratio of the sums of its
numerator and denominator, taken as weight per key: MDI is ``sum t / sum o`` and AEI ``sum t / sum
m``, with ``t = A_T / |T|``, ``o = A_O / |O|`` and ``m = (A_T + A_O) / (|T| + |O|)``. A mean of
ratios would be ruled by the examples with next to no weight on the image. If Q is the same in all
examples the identity holds for the pooled values too.

The paper does not say what T takes in, and weight on BOS alone can decide the number, so each
variant takes in another set: see `CONVENTIONS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.part_masses import (
    IMAGE,
    OUTPUT,
    PartMasses,
    needs_text_and_image,
    part_masses,
)

CONVENTIONS = {
    "T=all": (("first", "template", "own"), True),
    "T=-bos": (("template", "own"), True),
    "T=-template": (("first", "own"), True),
    "T=-output": (("first", "template", "own"), False),
    "T=question": (("own",), False),
}
"""Variant -> kinds of prompt text that T takes in, and whether it takes in the output so far.

``all``: every key that is no image; ``-bos``: without BOS, or the first key where there is none;
``-template``: without system prompt, chat template and special tokens; ``-output``: without the
answer so far; ``question``: what the user asks and nothing else.
"""


@dataclass(frozen=True)
class Densities:
    """Sums of one example's queries, float64 ``[example head]`` and ``[example 1]``.

    Examples in which either set is empty are 0 throughout.
    """

    text_mass: Tensor
    image_mass: Tensor
    text_keys: Tensor
    image_keys: Tensor

    @property
    def text(self) -> Tensor:
        """t: weight per text key."""
        return self.text_mass / self.text_keys.clamp_min(1)

    @property
    def image(self) -> Tensor:
        """o: weight per image key."""
        return self.image_mass / self.image_keys.clamp_min(1)

    @property
    def both(self) -> Tensor:
        """m: weight per key of either."""
        keys = self.text_keys + self.image_keys
        return (self.text_mass + self.image_mass) / keys.clamp_min(1)

    @property
    def share(self) -> Tensor:
        """P: share of the weight on either that is on text, 0 where there is none."""
        total = self.text_mass + self.image_mass
        return self.text_mass / torch.where(total > 0, total, 1.0)

    @property
    def key_share(self) -> Tensor:
        """Q: share of the keys that are text."""
        return self.text_keys / (self.text_keys + self.image_keys).clamp_min(1)

    @property
    def there(self) -> Tensor:
        """1 where the example has both."""
        return (self.text_keys > 0).double()


def densities(masses: PartMasses, convention: str) -> Densities:
    """The four sums under one of the `CONVENTIONS`."""
    kinds, with_output = CONVENTIONS[convention]
    text = masses.text(kinds=kinds) + [OUTPUT] * with_output
    keys = masses.pairs("telling", text), masses.pairs("telling", [IMAGE])
    both = (keys[0] > 0) & (keys[1] > 0)
    return Densities(
        masses.mass("telling", text) * both,
        masses.mass("telling", [IMAGE]) * both,
        keys[0] * both,
        keys[1] * both,
    )


@dataclass(frozen=True)
class _Dominance(ABC):
    """What the three share: where they apply, and their conventions."""

    name: str
    unit: str
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_text_and_image(context, self.name)

    def start(self, call: CallView) -> Finish:
        masses = part_masses(call)

        def finish() -> Iterator[Score]:
            for variant in CONVENTIONS:
                found = _shared(call, masses, variant)
                if bool(found.there.any()):
                    yield self.score(variant, found)

        return finish

    @abstractmethod
    def score(self, variant: str, found: Densities) -> Score:
        """The measure's own ratio."""


class ModalityDominance(_Dominance):
    """Weight per text key over weight per image key (MDI), 0 and up; 1 is balanced."""

    def score(self, variant: str, found: Densities) -> Score:
        return Score(variant, found.text, found.image)


class AttentionEfficiency(_Dominance):
    """Weight per text key over weight per key of either (AEI), 0 to 1 / Q; 1 is balanced."""

    def score(self, variant: str, found: Densities) -> Score:
        return Score(variant, found.text, found.both)


class TextShare(_Dominance):
    """Share P of the weight on text or image that is on text, 0 to 1; its null is Q."""

    def score(self, variant: str, found: Densities) -> Score:
        return Score(variant, found.share, found.there, null=(found.key_share, found.there))


def _shared(call: CallView, masses: PartMasses, convention: str) -> Densities:
    """`densities`, worked out once for the three measures."""
    key = f"densities {convention}"
    if key not in call.shared:
        call.shared[key] = densities(masses, convention)
    return call.shared[key]


MODALITY_DOMINANCE = ModalityDominance("modality_dominance", "ratio")
ATTENTION_EFFICIENCY = AttentionEfficiency("attention_efficiency", "ratio")
TEXT_SHARE = TextShare("text_share", "share")
