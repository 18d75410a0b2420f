"""Needle-in-a-haystack prompts for any tokenizer: words to repeat, filler, and the first word.

``BOS filler NEEDLE filler NEEDLE[:cue]``: a model that copies goes on with the rest of the needle.
Random words stand in for the sentence of Wu et al. (2024), so that nothing but the context can
tell what comes next and no instruction has to be understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.behaviours.probe_sequences import (
    beginning,
    drawn,
    generator_of,
    ordinary_ids,
)

if TYPE_CHECKING:
    from probes.subject import Subject

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_TOKENS = 1_024
"""Longest prompt that is built unless told otherwise; 5,000 were seen to rank heads as 50,000."""
_LENGTHS = 4
_CUE = 1


@dataclass(frozen=True)
class Needle:
    """One trial.

    Attributes:
        ids: the prompt.
        start: position of the needle's first token in the prompt.
        needle: the needle's ids, no id twice and none of them in the filler.
        cue: how many of them end the prompt; the rest is to be said.
        depth: 0 where the needle comes first, 1 where it comes last.
    """

    name: str
    ids: tuple[int, ...]
    start: int
    needle: tuple[int, ...]
    depth: float
    cue: int = _CUE

    @property
    def wanted(self) -> tuple[int, ...]:
        """What the model should say."""
        return self.needle[self.cue :]


@dataclass(frozen=True)
class NeedleOptions:
    """How trials are built.

    Attributes:
        words: length of the needle in tokens.
        lengths: lengths of the prompt in tokens; by default four, up to the context or
            `MOST_TOKENS`.
        depths: where the needle lies, 0 to 1.
        repeats: trials per length and depth.
    """

    words: int = 8
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTHS
    repeats: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.words < 2 * _CUE + 1:
            raise ValueError(
                f"A needle must be at least {2 * _CUE + 1} tokens long, got {self.words}."
            )
        if any(not 0 <= depth <= 1 for depth in self.depths) or not self.depths:
            raise ValueError(f"Depths must lie between 0 and 1, got {list(self.depths)}.")


def needle_trials(
    subject: Subject, options: NeedleOptions, filler: Sequence[int] = ()
) -> list[Needle]:
    """All trials, those of one length together.

    Args:
        filler: token ids of a text, of which pieces are taken; random ordinary tokens where it
            is empty. The needle's tokens are left out of it.

    Raises:
        ValueError: the needle does not fit the context or the vocabulary.
    """
    start, ids = beginning(subject), ordinary_ids(subject)
    if len(ids) < 2 * options.words:
        raise ValueError(
            f"The vocabulary of {subject.name!r} must have {2 * options.words} ordinary tokens "
            f"for a needle of {options.words}, it has {len(ids)}. Choose a shorter needle."
        )
    text = torch.tensor(filler, dtype=torch.long)
    trials = []
    for length in options.lengths or _lengths(subject, options, len(start)):
        room = length - len(start) - options.words - _CUE
        for depth in options.depths:
            for repeat in range(options.repeats):
                name = f"needle/{length}/{depth:g}/{repeat}"
                needle = drawn(ids, options.words, name, options.seed)
                hay = _hay(text, ids, needle, room, name, options.seed)
                before = round(depth * room)
                prompt = [*start, *hay[:before], *needle.tolist(), *hay[before:]]
                trials.append(
                    Needle(
                        name,
                        (*prompt, *needle[:_CUE].tolist()),
                        len(start) + before,
                        tuple(needle.tolist()),
                        depth,
                    )
                )
    return trials


def _hay(text: Tensor, ids: Tensor, needle: Tensor, room: int, name: str, seed: int) -> list[int]:
    """``room`` tokens without the needle's: a piece of the text from a random place, or noise."""
    generator = generator_of(name, seed, "hay")
    source = text[~torch.isin(text, needle)]
    if not len(source):
        others = ids[~torch.isin(ids, needle)]
        return others[torch.randint(len(others), (room,), generator=generator)].tolist()
    first = int(torch.randint(len(source), (), generator=generator))
    return source[(first + torch.arange(room)) % len(source)].tolist()


def _lengths(subject: Subject, options: NeedleOptions, start: int) -> list[int]:
    """From just enough for the needle to the most that leaves room for the answer."""
    context = subject.context_length
    longest = min(MOST_TOKENS, (context or MOST_TOKENS) - (options.words - _CUE))
    shortest = start + 2 * options.words + _CUE
    if longest < shortest:
        raise ValueError(
            f"The context of {subject.name!r} must hold a prompt of {shortest} tokens and "
            f"{options.words - _CUE} new ones, it holds {context}. Choose a shorter needle."
        )
    step = (longest - shortest) / (_LENGTHS - 1)
    return sorted({round(shortest + step * number) for number in range(_LENGTHS)})
