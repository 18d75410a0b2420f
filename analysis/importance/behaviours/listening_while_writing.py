"""Which key each head looks at most while a model writes, token by token; no pattern is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.heads import Site
from probes.listening import attach
from probes.tap import Attached, TapError

if TYPE_CHECKING:
    from probes.attention_call import AttentionCall
    from probes.subject import Subject


class MostAttended:
    """The most attended position of the last query of each forward of a generation.

    Args:
        prompt: length of the prompts, which must be alike.
    """

    def __init__(self, prompt: int) -> None:
        self.prompt = prompt
        self._steps: dict[Site, dict[int, Tensor]] = {}

    @property
    def places(self) -> dict[Site, Tensor]:
        """By site, long ``[example head step]``: where in the sequence the key stands.

        Step n is what the n-th new token was decided on, counted from 0.
        """
        return {
            site: torch.stack([steps[number] for number in sorted(steps)], dim=-1)
            for site, steps in self._steps.items()
        }

    def listener(self, call: AttentionCall) -> None:
        """Note the most attended key of each head. Attach this to the tap.

        Raises:
            TapError: the positions of the keys are not known.
        """
        key = call.last_tile().pattern[:, :, -1].argmax(-1)
        known = call.key_index is not None and call.query_index is not None
        if known:
            assert call.key_index is not None and call.query_index is not None
            # Caches of sliding windows hold the last keys only, so a key's number is no place.
            flat = call.key_index.to(key.device).gather(1, key)
            first = call.query_index[:, -1:].to(key.device) - (self.prompt - 1 + call.step)
            place = flat - first
            known = bool((flat >= 0).all())
        if not known:
            raise TapError(
                f"The positions of the keys of {call.site} must be known while the model writes, "
                "and these calls do not fit its token map. Leave 'retrieval' out of `--measures`."
            )
        self._steps.setdefault(call.site, {})[call.step] = place.cpu()


@contextmanager
def most_attended(subject: Subject, sites: Iterable[Site], prompt: int) -> Iterator[MostAttended]:
    """Listen while the ``with`` block lets the subject write after prompts of one length."""
    seen = MostAttended(prompt)
    with attach(subject, Attached(frozenset(sites), on_call=seen.listener)):
        yield seen
